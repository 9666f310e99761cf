"""Unigram entropy of the targets: the loss of a model that knows how often each id is wanted, and nothing else."""

import numpy as np

from gatokit.loader.windows import Windows
from gatokit.schemas.run import RunConfig
from gatokit.trainer.metrics import KIND_NAMES


def unigram_entropies(windows: Windows, config: RunConfig, batches: int) -> dict[str, float]:
    """Entropy in nats of the ids of each kind of target in the first ``batches`` batches; kinds without any are left
    out. It is that of the sample, and so a little too low: a loss below it is below that of all data."""
    seen = [windows.batch(step, range(config.batch)) for step in range(batches)]
    found = {}
    for kind, name in KIND_NAMES.items():
        counts = np.bincount(np.concatenate([batch.targets[batch.target_kinds == kind] for batch in seen]))
        shares = counts[counts > 0] / max(1, counts.sum())
        if len(shares):
            found[name] = float(-(shares * np.log(shares)).sum())
    return found
