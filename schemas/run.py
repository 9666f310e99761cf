"""The run config: the model, the input and the schedule of one training run, checked before any work begins."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from gatokit.schemas.config import Number, Positive, Text, WholeNumber
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.reading import read_yaml

Count = Annotated[WholeNumber, Field(ge=1)]
Share = Annotated[Number, Field(ge=0, le=1)]
Chance = Annotated[Number, Field(ge=0, lt=1)]

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "layers": 4,
        "width": 128,
        "heads": 4,
        "head_size": 32,
        "hidden": 512,
        "patch_channels": 32,
        "patch_stride": 2,
    },
    "79m": {"layers": 8, "width": 768, "heads": 24, "head_size": 32, "hidden": 3072},
    "364m": {"layers": 12, "width": 1536, "heads": 12, "head_size": 128, "hidden": 6144},
    "1.2b": {"layers": 24, "width": 2048, "heads": 16, "head_size": 128, "hidden": 8192},
}
"""Sizes by name: Gato's three (table 5) and one for tests and demos."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Model):
    """The network (Gato, section 2.2 and appendix C)."""

    size: Text | None = None
    """A name of ``SIZES``, whose values stand where the config gives none."""
    layers: Count
    width: Count
    heads: Count
    head_size: Count
    """Width of a head's keys and values."""
    hidden: Count
    """Width of the feed-forward layer before GEGLU halves it."""
    patch_channels: Count = 64
    """Channels of the residual block, a multiple of the 32 groups of its norms."""
    patch_stride: Literal[1, 2, 4] = 1
    """Stride of the residual block's first convolution."""
    observation_positions: Annotated[WholeNumber, Field(ge=1, le=65_535)] = 512
    """Rows of the table of positions within a step's observation."""
    action_position: StrictBool = True
    """Action tokens share one learned position."""
    positions: Literal["relative", "rotary"] = "relative"
    """How attention knows distances: Transformer-XL's relative positions, or rotary ones."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """The attention backend; auto takes the fastest that is right for the device."""
    stochastic_depth: Chance = 0.1
    """Chance that a sub-layer is skipped for a sequence in training (appendix C)."""
    dropout: Chance = 0.0
    """Of the fine-tuning (appendix E)."""

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"size": value}
        if isinstance(value, dict) and value.get("size") is not None:
            if value["size"] not in SIZES:
                raise ValueError(f"size must be one of {', '.join(SIZES)}, not {value['size']!r}")
            value = SIZES[value["size"]] | value
        return value

    @model_validator(mode="after")
    def _divides(self) -> "ModelConfig":
        if self.patch_channels % 32:
            raise ValueError(f"patch_channels must be a multiple of 32, not {self.patch_channels}")
        if self.hidden % 2:
            raise ValueError(f"hidden must be even, since GEGLU halves it, not {self.hidden}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head_size, not {self.head_size}")
        return self


class PromptConfig(_Model):
    """Demonstrations in front of windows of episodes (Gato, section 2.3)."""

    share: Share = 0.25
    """Of the windows of episodes."""
    end_share: Share = 0.5
    """Of the prompts: taken from the end of their episode, the others from anywhere in it."""
    tokens: Count = 512
    """At most this many, and at most half of the context."""
    loss: StrictBool = True
    """A prompt's actions and texts are targets too."""


class InputConfig(_Model):
    """How windows are drawn from the shards."""

    weights: dict[Text, Annotated[Number, Field(ge=0)]] | None = None
    """Share of windows by dataset, normalised; default: the weights of the build. A dataset left out is not drawn."""
    align: Literal["token", "step"] = "token"
    """Where a window of an episode begins: at any token, or at the beginning of a time step."""
    prompt: PromptConfig = PromptConfig()
    hide_actions: Share = 0.0
    """Share of the windows of episodes whose past actions are hidden from later steps."""
    patch_group_rows: Count = 8
    """Rows that share patch slots; it divides each process's part of a microbatch."""
    patch_slots: Count | None = None
    """Patch slots of a group; default: what the first windows need, with room to spare."""
    open_shards: Count = 1024
    """Shards of which a process draws at a time; each open one holds 13 bytes a record."""
    workers: Annotated[WholeNumber, Field(ge=0)] = 0
    """Processes that assemble batches; 0 for threads in the trainer's own."""
    threads: Count = 2
    """Threads that assemble batches where there are no worker processes."""
    prefetch: Count = 4
    """Batches that are kept ready."""


class OptimizerConfig(_Model):
    """AdamW and its schedule (Gato, appendix D); ``steps`` of the run end the cosine."""

    learning_rate: Positive = 1e-4
    final_learning_rate: Positive = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Annotated[WholeNumber, Field(ge=0)] = 15_000
    warmup_from: Annotated[Number, Field(ge=0)] = 1e-7
    beta1: Chance = 0.9
    beta2: Chance = 0.95
    epsilon: Positive = 1e-8
    weight_decay: Annotated[Number, Field(ge=0)] = 0.1
    clip: Positive | None = 1.0
    """Largest global norm of a gradient; not from the paper."""


class MeshConfig(_Model):
    """Devices along each axis; -1 takes what the others leave."""

    data: Annotated[WholeNumber, Field(ge=-1)] = -1
    fsdp: Count = 1
    tensor: Count = 1


class EvaluationConfig(_Model):
    """Loss on held-out episodes and documents."""

    every: Count = 1000
    """Steps between evaluations."""
    batches: Count = 8
    """Batches of each dataset."""


class CheckpointConfig(_Model):
    """What is kept of a run."""

    every: Count = 1000
    """Steps between checkpoints; one is always written at the end, and on SIGTERM."""
    keep_last: Count = 3
    keep_every: Count | None = None
    """Steps whose multiples are kept for good."""
    keep_best: StrictBool = True
    """The checkpoint of the lowest held-out loss is kept too."""


class RunConfig(_Model):
    """One training run."""

    model: ModelConfig
    context: Annotated[WholeNumber, Field(ge=2)] = 1024
    """Tokens of a window."""
    batch: Count = 512
    """Windows a step, over all devices."""
    microbatches: Count = 1
    """Parts of a batch whose gradients are added up before an update."""
    steps: Count = 1_000_000
    seed: Annotated[WholeNumber, Field(ge=0, lt=1 << 32)] = 0
    input: InputConfig = InputConfig()
    loss_weight: Literal["token", "sequence"] = "token"
    """Every target counts equally, or every window does."""
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of matrix products; parameters, norms, softmax and loss are float32."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass computes again: nothing, all but matrix products, or whole layers."""
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: Count = 10
    init_from: Text | None = None
    """A checkpoint or exported weights to start from, with this run's own schedule and data."""

    @model_validator(mode="after")
    def _fits(self) -> "RunConfig":
        if self.batch % self.microbatches:
            raise ValueError(f"batch {self.batch} must be a multiple of microbatches {self.microbatches}")
        if (self.batch // self.microbatches) % self.input.patch_group_rows:
            raise ValueError(
                f"a microbatch has {self.batch // self.microbatches} rows, no multiple of "
                f"input.patch_group_rows {self.input.patch_group_rows}"
            )
        if self.optimizer.warmup_steps >= self.steps and self.optimizer.schedule == "cosine":
            raise ValueError(f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be below steps {self.steps}")
        return self


def presets() -> list[str]:
    """Names of the run configs that come with the package."""
    found = files("gatokit.schemas").joinpath("presets").iterdir()
    return sorted(item.name.removesuffix(".yaml") for item in found if item.name.endswith(".yaml"))


def read_run_config(path_or_preset: str | Path) -> RunConfig:
    """The run config of a YAML file, or of a preset's name; ConfigError names the file, the field and the value."""
    path = Path(path_or_preset)
    if not path.exists() and path.parent == Path() and path.suffix != ".yaml":
        if str(path) not in presets():
            raise ConfigError(f"{path} is no file and no preset; presets are {', '.join(presets())}")
        path = Path(str(files("gatokit.schemas").joinpath("presets", f"{path}.yaml")))
    return read_yaml(
        path, RunConfig, "the key model and what differs from its defaults; gatokit train --help shows one"
    )
