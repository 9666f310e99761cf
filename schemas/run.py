"""The run config: the model, the input and the schedule of one training run, checked before any work begins."""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from gatokit.schemas.config import parse_mapping, read_mapping, validated
from gatokit.schemas.config_types import Number, Positive, Text, WholeNumber
from gatokit.schemas.errors import ConfigError

Count = Annotated[WholeNumber, Field(ge=1)]
Share = Annotated[Number, Field(ge=0, le=1)]
Chance = Annotated[Number, Field(ge=0, lt=1)]

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 4, "width": 128, "heads": 4, "head_size": 32, "hidden": 512},
    "79m": {"layers": 8, "width": 768, "heads": 24, "head_size": 32, "hidden": 3072},
    "364m": {"layers": 12, "width": 1536, "heads": 12, "head_size": 128, "hidden": 6144},
    "1.2b": {"layers": 24, "width": 2048, "heads": 16, "head_size": 128, "hidden": 8192},
}
"""Sizes by name: Gato's three (table 5) and one for tests and demos."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(_Model):
    """The network (Gato, section 2.2 and appendix C)."""

    size: Text | None = None
    """``tiny``, ``79m``, ``364m`` or ``1.2b``, which fills the keys that are not given. ``model: tiny`` for short."""
    layers: Count
    """Blocks."""
    width: Count
    """Width of the residual stream."""
    heads: Count
    """Attention heads."""
    head_size: Count
    """Width of a head's keys and values."""
    hidden: Count
    """Width of the feed-forward layer before GEGLU halves it."""
    positions: Literal["relative", "rotary"] = "relative"
    """How attention encodes distances: Transformer-XL's relative positions, or rotary positions."""
    attention: Literal["auto", "xla", "cudnn", "splash", "kernel"] = "auto"
    """The attention backend; auto takes the fastest correct one for the device."""
    stochastic_depth: Chance = 0.1
    """Chance that a sub-layer is skipped for a sequence in training (appendix C)."""
    dropout: Chance = 0.0
    """Dropout, which the paper has in fine-tuning (appendix E)."""

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"size": value}
        size = value.get("size") if isinstance(value, dict) else None
        if size is not None and size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
        return SIZES[size] | value if size else value

    @model_validator(mode="after")
    def _divides(self) -> "ModelConfig":
        if self.hidden % 2:
            raise ValueError(f"hidden must be even, since GEGLU halves it, not {self.hidden}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head_size, not {self.head_size}")
        return self

    @property
    def patch_channels(self) -> int:
        """Channels of the residual block for patches, a multiple of the 32 groups of its norms."""
        return patch_block(self.width)[0]

    @property
    def patch_stride(self) -> int:
        """Stride of that block's first convolution."""
        return patch_block(self.width)[1]


def patch_block(width: int) -> tuple[int, int]:
    """Channels and stride of the residual block for patches in a model of this width.

    The paper's sizes have 64 channels at full resolution; the block of a small model would cost more than the rest of
    it, so it is smaller.
    """
    if width >= 256:
        return 64, 1
    return 32, 2 if width >= 64 else 4


class PromptConfig(_Model):
    """Demonstrations in front of windows of episodes (Gato, section 2.3)."""

    share: Share = 0.25
    """Share of the windows of episodes that begin with a prompt: half of the prompts are taken from the end of their
    episode, the others from anywhere in it."""
    tokens: Count = 512
    """Most tokens of a prompt, which takes at most half of the context."""


class InputConfig(_Model):
    """How windows are drawn from the shards."""

    weights: dict[Text, Annotated[Number, Field(ge=0)]] | None = None
    """Share of windows by dataset, normalized; default: the weights of the build. A dataset left out is not drawn."""
    align: Literal["token", "step"] = "token"
    """Where a window of an episode begins: at any token, or at the beginning of a time step."""
    prompt: PromptConfig = PromptConfig()
    """Demonstrations in front of windows of episodes."""
    pack: StrictBool = True
    """Fills the windows of documents with several of them, which do not see each other."""
    hide_actions: Share = 0.0
    """Share of the windows of episodes whose past actions are hidden from later steps."""
    patch_group_rows: Count | None = None
    """Rows that share patch slots; it divides the rows of a microbatch on each device. Default: 8, or the largest
    power of two below it that does."""
    patch_slots: Count | None = None
    """Patch slots of a group; default: the fewest with which no dataset is expected to have more than 0.5 % of its
    windows drawn again."""
    skip: tuple[tuple[WholeNumber, WholeNumber], ...] = ()
    """Samples that are left out, as ranges [begin, end) that ascend; ``gatokit inspect RUN --step`` shows the numbers.
    It may change when a run goes on, for samples that were not drawn yet."""
    open_shards: Count = 1024
    """Shards from which a process draws at a time; each open shard holds 13 bytes a record."""
    workers: Annotated[WholeNumber, Field(ge=0)] = 0
    """Processes that assemble batches; 0: two threads in the trainer's own process."""

    @model_validator(mode="after")
    def _ascend(self) -> "InputConfig":
        ends = [end for pair in self.skip for end in pair]
        if any(second <= first for first, second in pairwise([-1, *ends])):
            raise ValueError("skip must be ranges [begin, end) that ascend and do not meet")
        return self


class OptimizerConfig(_Model):
    """AdamW and its schedule (Gato, appendix D)."""

    learning_rate: Positive = 1e-4
    """After warm-up."""
    final_learning_rate: Positive = 1e-5
    """At the end of the cosine."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after warm-up."""
    schedule_steps: Count | None = None
    """The step at which the cosine ends; default: ``steps`` of the run at its beginning. A run that goes on for more
    steps stays at the final learning rate, unless this is raised too."""
    warmup_steps: Annotated[WholeNumber, Field(ge=0)] | None = None
    """Steps of a linear rise, which begins at 1e-7; default: 15,000 (appendix D), or a tenth of the schedule if that is
    less."""
    skip_norm: Positive | None = None
    """A step whose gradient's norm is more than this many times its running mean is skipped; default: none is."""
    beta1: Chance = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: Chance = 0.95
    """Decay of AdamW's mean of squared gradients."""
    epsilon: Positive = 1e-8
    """Is added to AdamW's denominator."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.1
    """Of matrices and tables, not of norms and biases."""
    clip: Positive | None = 1.0
    """Largest global norm of a gradient; not from the paper."""


class MeshConfig(_Model):
    """Devices along each axis; -1 takes what the others leave."""

    data: Annotated[WholeNumber, Field(ge=-1)] = -1
    """Divides the rows of a batch."""
    fsdp: Count = 1
    """Divides the rows and the parameters."""
    tensor: Count = 1
    """Divides heads, feed-forward units and the vocabulary."""


class EvaluationConfig(_Model):
    """Loss on held-out episodes and documents."""

    every: Count = 1000
    """Steps between evaluations."""
    batches: Count = 8
    """Batches of each dataset."""


class CheckpointConfig(_Model):
    """The checkpoints of a run."""

    every: Count = 1000
    """Steps between checkpoints; one is always written at the end, and on SIGTERM."""
    keep_last: Count = 3
    """The newest checkpoints that are kept; the one of the lowest held-out loss is kept as well."""


class RunConfig(_Model):
    """One training run."""

    model: ModelConfig
    """The network: the name of a size, or keys."""
    context: Annotated[WholeNumber, Field(ge=2)] = 1024
    """Tokens of a window."""
    batch: Count = 512
    """Windows a step, over all devices."""
    microbatches: Count = 1
    """Parts of a batch whose gradients are added up before an update."""
    steps: Count = 1_000_000
    """Updates of the whole run."""
    seed: Annotated[WholeNumber, Field(ge=0, lt=1 << 32)] = 0
    """Of the initial parameters, the draws and stochastic depth."""
    input: InputConfig = InputConfig()
    """How windows are drawn."""
    loss_weight: Literal["token", "sequence"] = "token"
    """Every target counts equally, or every window does."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    mesh: MeshConfig = MeshConfig()
    """How devices share the work."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of matrix products; parameters, norms, softmax and loss are float32."""
    remat: Literal["none", "dots", "attention", "full"] = "full"
    """What the backward pass computes again: nothing, all but matrix products, all but queries, keys, values and
    attended values, or whole layers."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Loss on held-out data."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written, and which are kept."""
    most_skipped: Count = 10
    """Steps in a row that may be skipped, because a loss or a gradient is not finite or by ``optimizer.skip_norm``,
    before the run stops."""
    log_every: Count = 10
    """Steps between lines of metrics."""
    init_from: Text | None = None
    """A checkpoint or exported weights to start from, with this run's own schedule and data."""
    resume_from: Text | None = None
    """A run to go on from in another directory: its step, parameters and optimizer, with this run's config and data."""

    @property
    def schedule_steps(self) -> int:
        """``optimizer.schedule_steps``, or ``steps``."""
        return self.optimizer.schedule_steps or self.steps

    @property
    def warmup_steps(self) -> int:
        """``optimizer.warmup_steps``, or its default for this schedule."""
        given = self.optimizer.warmup_steps
        return min(15_000, self.schedule_steps // 10) if given is None else given

    @property
    def patch_group_rows(self) -> int:
        """``input.patch_group_rows``, or its default for this batch and mesh."""
        device_rows = self.batch // self.microbatches // (max(1, self.mesh.data) * self.mesh.fsdp)
        return self.input.patch_group_rows or math.gcd(8, device_rows)

    @model_validator(mode="before")
    @classmethod
    def _without_dropped(cls, value: Any) -> Any:
        """Accepts the ``run.json`` of an older run if its dropped options had the values that are now fixed."""
        if not isinstance(value, dict):
            return value
        value = deepcopy(value)
        for path, parent, option in list(_find_dropped(value)):
            fixed = option.fixed(parent) if callable(option.fixed) else option.fixed
            given = parent.pop(path.rpartition(".")[2])
            if fixed is not None and given != fixed:
                raise ValueError(_sentence(path, option))
        return value

    @model_validator(mode="after")
    def _fits(self) -> "RunConfig":
        if self.batch % self.microbatches:
            raise ValueError(f"batch {self.batch} must be a multiple of microbatches {self.microbatches}")
        if (self.batch // self.microbatches) % self.patch_group_rows:
            raise ValueError(
                f"a microbatch has {self.batch // self.microbatches} rows, which is not a multiple of "
                f"input.patch_group_rows {self.patch_group_rows}"
            )
        if self.warmup_steps >= self.schedule_steps and self.optimizer.schedule == "cosine":
            raise ValueError(f"optimizer.warmup_steps {self.warmup_steps} must be below steps {self.schedule_steps}")
        if self.init_from is not None and self.resume_from is not None:
            raise ValueError("init_from and resume_from are both given: one takes the parameters alone, the other all")
        return self


class _Dropped(NamedTuple):
    """An option that the run config no longer has."""

    fixed: Any
    """The value that is now fixed, or a function of the mapping that held it; None if no result depended on it."""
    advice: str


_PATCHES = (
    "remove it; channels and stride follow from model.width: 64 and 1 from width 256 on, 32 and 2 from width 64 on, "
    "32 and 4 below"
)
_DROPPED = {
    "model.patch_channels": _Dropped(lambda model: _patch_block_of(model)[0], _PATCHES),
    "model.patch_stride": _Dropped(lambda model: _patch_block_of(model)[1], _PATCHES),
    "model.observation_positions": _Dropped(
        512, "remove it; there are 512. For longer observations build with smaller images (images.size) or fewer fields"
    ),
    "model.action_position": _Dropped(True, "remove it; action tokens always share one learned position"),
    "input.prompt.end_share": _Dropped(0.5, "remove it; half of the prompts come from the end of their episode"),
    "input.prompt.loss": _Dropped(True, "remove it; a prompt's actions and texts are always targets"),
    "input.threads": _Dropped(
        None, "set input.workers instead: a number of processes, or 0 for two threads in the trainer's own process"
    ),
    "input.prefetch": _Dropped(None, "remove it; four batches are kept ready, and input.workers makes them faster"),
    "optimizer.warmup_from": _Dropped(1e-7, "remove it; warm-up begins at a learning rate of 1e-7"),
    "checkpoint.keep_every": _Dropped(
        None, "raise checkpoint.keep_last instead, or copy the checkpoints that are to stay"
    ),
    "checkpoint.keep_best": _Dropped(None, "remove it; the checkpoint of the lowest held-out loss is always kept"),
}


def _patch_block_of(model: dict[str, Any]) -> tuple[int, int]:
    return patch_block((SIZES.get(model.get("size", ""), {}) | model).get("width", 0))


def _find_dropped(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], _Dropped]]:
    """The dropped options in a config: each one's path, the mapping that holds it, and what to do about it."""
    for path, option in _DROPPED.items():
        parent: Any = content
        *groups, key = path.split(".")
        for group in groups:
            parent = parent.get(group) if isinstance(parent, dict) else None
        if isinstance(parent, dict) and key in parent:
            yield path, parent, option


def _sentence(path: str, option: _Dropped) -> str:
    return f"{path} is no longer an option: {option.advice}"


def presets() -> list[str]:
    """Names of the run configs that come with the package."""
    found = files("gatokit.schemas").joinpath("presets").iterdir()
    return sorted(item.name.removesuffix(".yaml") for item in found if item.name.endswith(".yaml"))


def read_run_config(path_or_preset: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run config of a YAML file, or of a preset's name, with ``overrides`` such as ``optimizer.clip=0.5``.

    Raises ConfigError, which names the file, the field and the value.
    """
    path = Path(path_or_preset)
    if not path.exists() and path.parent == Path() and path.suffix != ".yaml":
        if str(path) not in presets():
            raise ConfigError(f"{path} is no file and no preset; presets are {', '.join(presets())}")
        path = Path(str(files("gatokit.schemas").joinpath("presets", f"{path}.yaml")))
    content = read_mapping(path, "the key model and what differs from its defaults; gatokit train --help shows one")
    for override in overrides:
        _override(content, override)
    for name, _, option in _find_dropped(content):
        raise ConfigError(f"{path}: {_sentence(name, option)}")
    return validated(RunConfig, content, " with ".join([str(path), *overrides]))


def _override(content: dict[str, Any], override: str) -> None:
    """Sets a value in the mapping of a config."""
    name, equals, value = override.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"{override!r} is no KEY=VALUE, such as optimizer.learning_rate=3e-4")
    *groups, key = name.split(".")
    for group in groups:
        inner = content.setdefault(group, {})
        if isinstance(inner, str) and group == "model":  # the name of a size
            inner = content[group] = {"size": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"{override}: {group} is {inner!r} in the config, which has no keys")
        content = inner
    content[key] = parse_mapping(f"value: {value}", override, "one value")["value"]
