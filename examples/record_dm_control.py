"""Records simple controllers on the DeepMind Control Suite, noisy copies of them and random actions as RLDS.

    python examples/record_dm_control.py --out data --tasks cartpole-swingup reacher-easy --episodes 100

A hundred episodes of 1000 steps take about half a minute.
"""

from recording import parser_of, record_family

if __name__ == "__main__":
    names = ["cartpole-swingup", "pendulum-swingup", "reacher-easy"]
    record_family("dm_control", parser_of("dm_control", __doc__, names, episodes=100))
