"""Writes docs/config.md, the reference of both configs, from their models.

python docs/config_reference.py
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, StrictBool
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gatokit.schemas import config, config_episodes, config_types, run

PAGE = Path(__file__).resolve().with_name("config.md")
BUILD: dict[type[BaseModel], str] = {
    config.BuildConfig: "Build config",
    config_types.DatasetModel: "Every dataset",
    config_episodes.EpisodesConfig: "Episodes",
    config_episodes.Splits: "splits",
    config_episodes.EpisodeName: "task and agent",
    config_episodes.EpisodeKey: "order and id",
    config_episodes.Keep: "keep",
    config_episodes.Success: "success",
    config_episodes.FieldRule: "fields",
    config_episodes.Quantiles: "range",
    config_episodes.EpisodeImages: "images of episodes",
    config._Documents: "Every dataset of documents",
    config.TextConfig: "Text",
    config.ImageTextConfig: "Images with captions",
    config.ImageQuestionAnswerConfig: "Questions about images",
    config.InterleavedConfig: "Pages of text and images",
    config.DocumentImages: "images of documents",
}
RUN: dict[type[BaseModel], str] = {
    run.RunConfig: "Run config",
    run.ModelConfig: "model",
    run.InputConfig: "input",
    run.PromptConfig: "prompt",
    run.OptimizerConfig: "optimizer",
    run.MeshConfig: "mesh",
    run.EvaluationConfig: "evaluation",
    run.CheckpointConfig: "checkpoint",
}
"""The models and the headings of their sections, in the order of the page."""
TITLES = BUILD | RUN
MORE: dict[type[BaseModel], tuple[str, ...]] = {
    config_episodes.EpisodesConfig: ("Its keys beside those of [every dataset](#every-dataset):",),
    config._Documents: ("Beside those of [every dataset](#every-dataset):",),
    config_episodes.Keep: ("[keep.md](keep.md) explains the rules.",),
    config_episodes.FieldRule: ("[tokens.md](tokens.md) says how values become tokens.",),
    run.RunConfig: ("[training.md](training.md) says what is fixed beside it.",),
}

TYPES: dict[Any, str] = {
    config_types.Name: "letters, digits, `_`, `.`, `-`",
    config_types.Text: "string",
    config_types.Number: "number",
    config_types.WholeNumber: "whole number",
    config_types.Size: "[height, width]",
    config_episodes.Pattern: "regular expression",
    config_episodes.Amount: "whole number ≥ 1, or number between 0 and 1",
    config_episodes.ReturnRange: "[low, high]",
    config_episodes.Names: "string, or list of them",
    StrictBool: "true, false",
    str: "string",
    float: "number",
    int: "whole number",
}
"""How a type reads; what is not here is put together of its parts."""
BY_KEY = {
    "EpisodesConfig.observe": "list of strings, or of lists of them",
    "Keep.random_return": "number, or one a task",
    "Keep.success": "string, or [success](#success)",
    "EpisodesConfig.splits": "string, list of them, or [splits](#splits)",
    "FieldRule.range": "[low, high], list of such pairs, `data`, or [quantiles](#range)",
    "Quantiles.quantiles": "[low, high]",
    "RunConfig.model": "size, or [model](#model)",
    "ModelConfig.size": ", ".join(f"`{size}`" for size in run.SIZES),
}
"""Types that a validator widens."""

EXAMPLES = yaml.safe_load("""
DatasetModel:
  name: 'name: bridge'
  license: 'license: CC-BY-4.0'
  weight: 'weight: 8.96'
_Documents:
  drop_duplicates: 'drop_duplicates: false'
  end_of_document: 'end_of_document: false'
  max_text_bytes: 'max_text_bytes: 268435456'
  max_unpacked: 'max_unpacked: 1000'
BuildConfig:
  vocabulary: 'vocabulary: vocabulary.model'
  discrete_offset: 'discrete_offset: 33024'
  chunk_tokens: 'chunk_tokens: 8192'
  shard_bytes: 'shard_bytes: 67108864'
  max_episode_bytes: 'max_episode_bytes: 4294967296'
  max_bad_fraction: 'max_bad_fraction: 0.05'
  free_bad_rows: 'free_bad_rows: 0'
  max_lost_bytes: 'max_lost_bytes: 0.01'
  max_bad_images: 'max_bad_images: 0.1'
  max_unknown_pieces: 'max_unknown_pieces: 0.01'
  holdout: 'holdout: 0.02'
  seed: 'seed: 1'
  datasets: 'datasets: [{name: prose, kind: text, source: data/*.jsonl}]'
EpisodesConfig:
  kind: 'kind: episodes'
  source: 'source: data/bridge/*'
  splits: 'splits: ["train[:25%]"]'
  files: 'files: present'
  merge: 'merge: true'
  last_step: 'last_step: real'
  task: 'task: {field: language_instruction}'
  agent: 'agent: {metadata: agent_id}'
  order: 'order: {metadata: episode_index}'
  id: 'id: {metadata: file_path}'
  keep: 'keep: {success: success}'
  observe: 'observe: [[language_instruction, language_instruction_2], goal]'
  action: 'action: action_dict/joint_velocity'
  fields: 'fields: {action: {range: data}, observation/depth: {as: skip}}'
  images: 'images: {size: [128, 128], codec: jpeg}'
  hz: 'hz: 5'
Splits:
  train: 'train: [train]'
  held_out: 'held_out: [val, test]'
EpisodeName:
  source: 'from: directory'
  constant: 'constant: fold the towel'
EpisodeKey:
  metadata: 'metadata: episode_index'
  field: 'field: observation/task_id'
  path: 'path: "run_([0-9]+)"'
Keep:
  min_return: 'min_return: 0.8'
  random_return: 'min_return: 0.8, random_return: 1.6'
  streams: 'min_return: 0.8, streams: task'
  all: 'all: true'
  success: 'success: {last_reward: 1}'
  returns: 'return: [10, null]'
  where: 'where: steps < 400 and return > 0'
  episodes: 'episodes: chosen.csv'
  digest: 'episodes: chosen.csv, digest: 0b4f7504c471c79a387d88dc47efab863ef61f86a5b257fa2b37a35be275346f'
  best: 'best: 0.1'
  by: 'best: 100, by: score'
  sample: 'sample: 200'
  seed: 'sample: 200, seed: 3'
Success:
  key: 'key: success'
  metadata: 'metadata: aspects/success'
  field: 'field: observation/episode_success'
  last_reward: 'last_reward: 1'
  matches: 'metadata: file_path, matches: /success/'
EpisodeImages:
  size: 'size: [224, 224]'
  codec: 'codec: jpeg'
  quality: 'quality: 90'
Quantiles:
  quantiles: 'quantiles: [0.01, 0.99]'
FieldRule:
  kind: 'as: skip'
  range: 'range: [[-0.05, 0.05], [0, 1]]'
  clip: 'range: {quantiles: [0.01, 0.99]}, clip: true'
  num: 'as: discrete, num: 18'
  offset: 'as: discrete, num: 3, offset: -1'
  every: 'as: text, every: episode'
  max_length: 'max_length: 16'
  images: 'images: {size: [64, 64]}'
TextConfig:
  kind: 'kind: text'
  source: 'source: data/text/*.jsonl'
  field: 'field: body'
ImageTextConfig:
  kind: 'kind: image_text'
  format: 'format: webdataset'
  source: 'source: data/captions/*.tar'
  image_dir: 'format: coco, image_dir: coco/train2017'
  follow_links: 'format: coco, image_dir: coco/train2017, follow_links: true'
  image_field: 'image_field: photo'
  text_field: 'text_field: title'
  images: 'images: {max_patches: 64}'
  pairs_per_sequence: 'pairs_per_sequence: 4'
ImageQuestionAnswerConfig:
  kind: 'kind: image_question_answer'
  questions: 'questions: vqa/questions.json'
  annotations: 'annotations: vqa/annotations.json'
  image_dir: 'image_dir: vqa/train'
  follow_links: 'follow_links: true'
  image_name: 'image_name: "{image_id}.png"'
  template: 'template: "{question} {answer}"'
  images: 'images: {size: [64, 64]}'
  pairs_per_sequence: 'pairs_per_sequence: 1'
InterleavedConfig:
  kind: 'kind: interleaved'
  format: 'format: mmc4'
  source: 'source: data/mmc4/*.jsonl'
  image_dir: 'image_dir: data/mmc4/images'
  follow_links: 'image_dir: data/mmc4/images, follow_links: true'
  bad_images: 'bad_images: skip'
  images: 'images: {max_patches: 64}'
DocumentImages:
  size: 'size: [64, 64]'
  max_patches: 'max_patches: 128'
  codec: 'codec: jpeg'
  quality: 'quality: 90'
RunConfig:
  model: 'model: 79m'
  context: 'context: 2048'
  batch: 'batch: 256'
  microbatches: 'microbatches: 4'
  steps: 'steps: 200000'
  seed: 'seed: 1'
  input: 'input: {align: step}'
  loss_weight: 'loss_weight: sequence'
  optimizer: 'optimizer: {learning_rate: 2e-4}'
  mesh: 'mesh: {fsdp: 16}'
  precision: 'precision: float32'
  remat: 'remat: dots'
  evaluation: 'evaluation: {every: 500}'
  checkpoint: 'checkpoint: {keep_last: 1}'
  most_skipped: 'most_skipped: 3'
  log_every: 'log_every: 100'
  init_from: 'init_from: pretrained/checkpoint'
  resume_from: 'resume_from: runs/gato'
ModelConfig:
  size: 'size: 364m'
  layers: 'size: 79m, layers: 12'
  width: 'size: tiny, width: 256'
  heads: 'size: tiny, heads: 8'
  head_size: 'size: tiny, head_size: 64'
  hidden: 'size: tiny, hidden: 1024'
  positions: 'positions: rotary'
  attention: 'attention: cudnn'
  stochastic_depth: 'stochastic_depth: 0.0'
  dropout: 'dropout: 0.1'
InputConfig:
  weights: 'weights: {bridge: 3, prose: 1}'
  align: 'align: step'
  prompt: 'prompt: {share: 0}'
  hide_actions: 'hide_actions: 0.5'
  pack: 'pack: false'
  patch_group_rows: 'patch_group_rows: 4'
  patch_slots: 'patch_slots: 96'
  skip: 'skip: [[1200, 1300]]'
  open_shards: 'open_shards: 256'
  workers: 'workers: 4'
PromptConfig:
  share: 'share: 0.5'
  tokens: 'tokens: 256'
OptimizerConfig:
  learning_rate: 'learning_rate: 2e-4'
  final_learning_rate: 'final_learning_rate: 2e-5'
  schedule: 'schedule: constant'
  schedule_steps: 'schedule_steps: 20000'
  warmup_steps: 'warmup_steps: 1000'
  skip_norm: 'skip_norm: 5'
  beta1: 'beta1: 0.95'
  beta2: 'beta2: 0.999'
  epsilon: 'epsilon: 1e-6'
  weight_decay: 'weight_decay: 0'
  clip: 'clip: null'
MeshConfig:
  data: 'data: 8'
  fsdp: 'fsdp: 16'
  tensor: 'tensor: 4'
EvaluationConfig:
  every: 'every: 500'
  batches: 'batches: 32'
CheckpointConfig:
  every: 'every: 5000'
  keep_last: 'keep_last: 1'
""")
"""An example of every key, by the model that defines it: a part of a mapping with that key."""

INTRODUCTION = """\
# Keys of the configs

`make docs` writes this page from the models in `schemas/`. A key that is not here is refused, and the answer names the
nearest one. Paths start at the config file. An example is a part of the mapping that holds the key. A key without a
default need not be given; its meaning says what happens then.

- [Build config](#build-config), for `gatokit vocab`, `scan` and `build`. Its datasets are
  [episodes](#episodes), [text](#text), [images with captions](#images-with-captions),
  [questions about images](#questions-about-images) and [pages](#pages-of-text-and-images).
  [cli/demo.yaml](../cli/demo.yaml), [episodes.yaml](../examples/episodes.yaml),
  [corpora.yaml](../examples/corpora.yaml) and [openx.yaml](../examples/openx.yaml) are whole ones.
- [Run config](#run-config), for `gatokit train`. [schemas/presets](../schemas/presets) and
  [cli/demo-train.yaml](../cli/demo-train.yaml) are whole ones.
"""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *map(section, TITLES)])


def section(model: type[BaseModel]) -> str:
    """A heading, what the model is, and a row for every key that no section of a base has."""
    level = "##" if TITLES[model][0].isupper() else "###"
    lines = [f"{level} {TITLES[model]}", "", " ".join([prose(model.__doc__ or ""), *MORE.get(model, ())]), ""]
    lines += ["| key | type | default | meaning | example |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(row(model, name) for name in keys(model)), ""])


def keys(model: type[BaseModel]) -> list[str]:
    """The fields of a model without those of every dataset, which have a section of their own."""
    shared = [base for base in (config_types.DatasetModel, config._Documents) if base is not model]
    return [name for name in model.model_fields if not any(_has(base, name, model) for base in shared)]


def _has(base: type[BaseModel], name: str, model: type[BaseModel]) -> bool:
    return issubclass(model, base) and name in base.model_fields


def row(model: type[BaseModel], name: str) -> str:
    """The row of a key: its name in the config, type, default, meaning and an example."""
    field = model.model_fields[name]
    hint = get_type_hints(model, include_extras=True)[name]
    type_ = BY_KEY.get(f"{model.__name__}.{name}") or type_of(hint)
    cells = [f"`{field.alias or name}`", type_, default(model, name, field), prose(field.description or "")]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, f"`{example(model, name)}`"]) + " |"


def example(model: type[BaseModel], name: str) -> str:
    """The example of a key. Raises KeyError if ``EXAMPLES`` has none."""
    for base in model.__mro__:
        if name in EXAMPLES.get(base.__name__, {}):
            return str(EXAMPLES[base.__name__][name])
    raise KeyError(f"{PAGE.with_suffix('.py').name}: EXAMPLES has none of {model.__name__}.{name}; add one")


def default(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """What a key has if it is not given. For None, the meaning says what happens."""
    if field.is_required():
        return "of the size" if model is run.ModelConfig else "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or value == {}:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True, by_alias=True, mode="json")
        return f"`{flow(value)}`" if value else ""
    return f"`{flow(value)}`"


def flow(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return re.sub(r"\n\.\.\.$", "", yaml.safe_dump(value, default_flow_style=True, width=1000).strip())


def type_of(hint: Any) -> str:
    """A type in words, with its limits; ``None`` beside other types is left out, because it means the default."""
    if hint in TYPES:
        return TYPES[hint]
    if isinstance(hint, type) and hint in TITLES:
        return f"[{TITLES[hint]}](#{anchor(TITLES[hint])})"
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_of(parts[0]) + limits(parts[1:])
    if origin is Literal:
        return ", ".join(f"`{flow(value)}`" for value in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of {type_of(parts[0])}"
    if origin is dict:
        return f"mapping of string to {type_of(parts[1])}"
    if origin is Union or parts:
        return " or ".join(type_of(part) for part in parts if part is not type(None))
    raise TypeError(f"{hint} has no words; add it to TYPES")


def limits(metadata: tuple[Any, ...]) -> str:
    """Bounds of a number: `` ≥ 0, < 1``."""
    found = [
        f" {sign} {flow(getattr(part, name))}"
        for info in metadata
        for part in (info.metadata if isinstance(info, FieldInfo) else [info])
        for kind, name, sign in ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
        if isinstance(part, kind)
    ]
    return ",".join(found)


def prose(text: str) -> str:
    """A docstring in one line, its code marked as Markdown does."""
    return " ".join(text.replace("``", "`").split())


def anchor(title: str) -> str:
    """The link to a heading."""
    return title.lower().replace(" ", "-")


def models() -> list[type[BaseModel]]:
    """Every model that the two configs can reach."""
    reached: list[Any] = [config.BuildConfig, run.RunConfig]
    for hint in reached:
        is_model = isinstance(hint, type) and issubclass(hint, BaseModel)
        hints = get_type_hints(hint, include_extras=True) if is_model else {}
        below = [hints[name] for name in hint.model_fields] if is_model else get_args(hint)
        reached += [part for part in below if part not in reached]
    return [hint for hint in reached if isinstance(hint, type) and issubclass(hint, BaseModel)]


if __name__ == "__main__":
    main()
