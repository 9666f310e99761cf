"""Floating-point operations of the model, counted from its sizes: the one source of MFU and of the planner's times.

A multiplication and an addition are two. Only products of matrices are counted: they are all but a few percent.
"""

from dataclasses import astuple, dataclass

from gatokit.schemas.run import ModelConfig
from gatokit.schemas.tokens import PATCH
from gatokit.trainer.model import POOLED

BACKWARD = 2
"""A backward pass costs this many forward passes: one for the inputs' gradients, one for the parameters'."""


@dataclass(frozen=True)
class Flops:
    """Operations by what they are spent on."""

    attention: float
    """Projections, scores and weighted values; scores of keys behind their queries too."""
    relative: float
    """What relative positions add: the projection of the distances and their scores."""
    feed_forward: float
    patches: float
    logits: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(astuple(self))

    def times(self, factor: float) -> "Flops":
        """Each of them ``factor`` times."""
        return Flops(*(factor * part for part in astuple(self)))


def forward(
    config: ModelConfig, *, rows: float, context: int, patch_slots: float, targets: float, vocabulary_size: int
) -> Flops:
    """Operations of a forward pass over ``rows`` windows of ``context`` tokens with ``patch_slots`` slots and
    ``targets`` positions with logits, in all rows together."""
    width, heads = config.width, config.heads * config.head_size
    tokens = rows * context
    scores = 2 * rows * context * context * heads
    relative = 2 * context * width * heads + scores if config.positions == "relative" else 0
    return Flops(
        attention=config.layers * (4 * 2 * tokens * width * heads + 2 * scores),
        relative=config.layers * relative,
        feed_forward=config.layers * 2 * tokens * width * (config.hidden + config.hidden // 2),
        patches=patch_slots * _patch(config),
        logits=2 * targets * width * vocabulary_size,
    )


def train_step(
    config: ModelConfig, *, rows: float, context: int, patch_slots: float, targets: float, vocabulary_size: int
) -> Flops:
    """Operations of a training step: forward and backward, and nothing for what remat computes again."""
    return forward(
        config,
        rows=rows,
        context=context,
        patch_slots=patch_slots,
        targets=targets,
        vocabulary_size=vocabulary_size,
    ).times(1 + BACKWARD)


def _patch(config: ModelConfig) -> float:
    """Operations of one patch slot's residual block and projections."""
    channels, pixels, cells = config.patch_channels, PATCH**2, POOLED**2
    convolved = pixels // config.patch_stride**2
    stem = 2 * pixels * 3 * channels
    convolutions = 2 * 2 * convolved * 9 * channels * channels
    reduced = channels // 2
    return stem + convolutions + 2 * cells * channels * reduced + 2 * cells * reduced * config.width
