"""Records BabyAI's bot, noisy copies of it and random actions as RLDS.

    python examples/record_babyai.py --out data --tasks GoToLocal-v0 PickupLoc-v0 --episodes 200

Two hundred episodes of a small level take a second or two, of a maze a minute. The bot does not solve KeyInBox and
the Carrying levels.
"""

from recording import parser_of, record_family

if __name__ == "__main__":
    record_family("babyai", parser_of("babyai", __doc__, ["GoToLocal-v0", "PickupLoc-v0"], episodes=200))
