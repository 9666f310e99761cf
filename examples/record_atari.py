"""Records Atari games as RLDS, played by controllers that read the console's memory, noisy copies of them and chance.

    python examples/record_atari.py --out data --tasks Breakout --steps 1000 --episodes 20

Frames are shrunk to 96x80 (30 patches of 16x16) and stored as PNG; ten thousand of them take about half a minute.
"""

from recording import parser_of, record_family

if __name__ == "__main__":
    parser = parser_of("atari", __doc__, ["Breakout"], episodes=20)
    parser.add_argument("--steps", type=int, default=1000, help="steps after which an episode is cut")
    parser.add_argument("--size", type=int, nargs=2, default=[96, 80], metavar=("HEIGHT", "WIDTH"), help="of a frame")
    record_family("atari", parser, lambda given: {"time_limit": given.steps, "size": tuple(given.size)})
