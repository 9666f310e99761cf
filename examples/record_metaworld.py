"""Records Meta-World's scripted experts, noisy copies of them and random actions as RLDS.

    python examples/record_metaworld.py --out data --tasks door-open-v3 drawer-open-v3 --episodes 100

A hundred episodes of a task take about half a minute. ``--tasks all`` records all fifty: on handle-press-side,
where random actions may earn more than the expert, the filter has little to work with.
"""

from recording import parser_of, record_family

if __name__ == "__main__":
    names = ["button-press-topdown-v3", "door-open-v3", "drawer-open-v3"]
    record_family("metaworld", parser_of("metaworld", __doc__, names, episodes=100))
