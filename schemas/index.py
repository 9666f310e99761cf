"""The index: one row for each episode or document of a dataset, dropped ones included, and the table of tasks."""

from collections import Counter
from collections.abc import Collection, Iterable

import pyarrow as pa

from gatokit.schemas.manifest import INDEX_VERSION, MetadataType

INDEX = pa.schema(
    [
        pa.field("episode_id", pa.string()),
        pa.field("task", pa.string()),
        pa.field("agent", pa.string()),
        pa.field("spec", pa.string()),
        pa.field("order", pa.float64()),  # collection order within the agent's stream
        pa.field("split", pa.string()),  # train or held_out; null when dropped
        pa.field("steps", pa.int64()),  # steps with an action
        pa.field("return", pa.float64()),  # null when the rewards do not parse
        pa.field("kept", pa.bool_()),
        pa.field("reason", pa.string()),  # a key of REASONS; null when kept
        pa.field("detail", pa.string()),  # what exactly was wrong; for a kept page, what was left out of it
        pa.field("lost", pa.int64()),  # episodes of the source that this row counts: 1, or more after a corrupt length
        pa.field("tokens", pa.int64()),  # null in a scan
        pa.field("part", pa.int32()),  # ordinal of the shard file among the split's parts
        pa.field("first_record", pa.int64()),  # ordinal in that part
        pa.field("record_tokens", pa.list_(pa.int32())),  # tokens of each of the owner's records
        pa.field("source_file", pa.string()),  # path below the source
        pa.field("source_position", pa.int64()),  # ordinal of the episode in that file
    ],
    metadata={"gatokit.index": str(INDEX_VERSION)},
)

OF_TASK = ("expert_return", "threshold")
"""Columns of ``TASKS`` that readers of an index give each of its rows, by the row's task."""
ROW_COLUMNS = [column for name in INDEX.names for column in ([name, *OF_TASK] if name == "return" else [name])]
"""The columns of a row as readers give it. In format 1 they were the columns of the index."""
INDEX_SUFFIX = ".index.parquet"
"""Ends the names of index files."""

METADATA_TYPES: dict[MetadataType, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
}
"""The types of the nullable columns behind those of ``INDEX``, which hold the values stored with each episode."""
RESERVED = {*ROW_COLUMNS, "records", "shard"}
"""Names of columns that a value of an episode does not take; the last two are made of others by inspection."""


def metadata_columns(paths: Iterable[str]) -> dict[str, str]:
    """The name of the index's column for each key path of a value stored with an episode.

    It is the last component if no other path ends in it and no column of ``INDEX`` has this name, else the whole path,
    with ``metadata/`` before it if that name is taken too.
    """
    paths = sorted(set(paths))
    last = Counter(path.rpartition("/")[2] for path in paths)
    names: dict[str, str] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        if last[name] > 1 or name in RESERVED:
            name = path
        while name in RESERVED or name in names.values():
            name = f"metadata/{name}"
        names[path] = name
    return names


def common_type(types: Collection[MetadataType]) -> MetadataType:
    """The type that holds the values of all these types; of a string and anything else it is a string."""
    return "string" if "string" in types else max(types, key=list(METADATA_TYPES).index)


TASKS = pa.schema(
    [
        pa.field("task", pa.string()),
        pa.field("agent", pa.string()),
        pa.field("episodes", pa.int64()),  # N: those whose rewards parse and are finite
        pa.field("window", pa.int64()),  # W of the agent's stream
        pa.field("stream_return", pa.float64()),  # best mean of W consecutive returns in this stream
        pa.field("expert_return", pa.float64()),  # of the task: the best of its streams
        pa.field("threshold", pa.float64()),
        pa.field("kept", pa.int64()),
        pa.field("dropped", pa.int64()),  # every row that is not kept, damaged ones included
        pa.field("held_out", pa.int64()),  # of those kept
        pa.field("steps", pa.int64()),  # of those kept
        pa.field("tokens", pa.int64()),  # of those kept; null in a scan
    ],
    metadata={"gatokit.index": str(INDEX_VERSION)},
)

TRAIN, HELD_OUT = "train", "held_out"

RULE_REASONS = {
    "below_threshold": "the return is below the task's threshold",
    "not_success": "the episode is not marked as a success",
    "outside_range": "the return is outside of the range to keep",
    "not_where": "the expression to keep by is not true for the episode",
    "not_listed": "the list of episodes to keep does not name it",
    "not_best": "the task has enough episodes of higher returns, or of the same return before it",
    "not_sampled": "the random sample of the task does not take it",
    "too_short": "no step has an action",
    "duplicate": "an earlier document of the dataset has exactly the same content",
    "empty": "there is nothing to tokenize",
}
"""Reasons of a filter: the episode or document is intact, but not wanted."""

BAD_REASONS = {
    "corrupt_record": "the stored bytes do not match their checksum or do not parse",
    "corrupt_length": "a part of its file is damaged, and what lies in it is lost",
    "ends_early": "its file ends early, so that what is behind its end is lost",
    "not_finite": "a value is NaN or infinite",
    "malformed_steps": "fields disagree on the number of steps, or a step after the last one follows",
    "duplicate_id": "an earlier document of the file has the same key",
    "contradiction": "parts disagree: two pictures have one id, or an answer is about another picture",
    "missing_image": "an image that the document names is not there",
    "missing_field": "a field or a configured key is absent",
    "wrong_shape": "a value has another type, shape or size than it should",
    "out_of_range": "a discrete value is outside its range",
    "not_utf8": "a text is not valid UTF-8",
    "bad_image": "an image does not decode or has a form that is not read",
    "image_too_large": "an image has more pixels than are ever decoded",
    "image_animated": "an image file holds an animation or several pages",
    "too_large": "the episode or document is above max_episode_bytes and was not read",
    "crashed_decoder": "reading or decoding it ended the process that did so",
    "step_too_long": "a step has more observation tokens than a position can count",
}
"""Reasons that count against the error budget: the input is damaged."""

ENDS_EARLY = "ends_early"
CONTAINER_REASONS = frozenset(("corrupt_length", ENDS_EARLY))
"""Reasons of rows that replace all episodes or documents of a part of a file, which cannot be read."""

REASONS = RULE_REASONS | BAD_REASONS
"""Every value of the index column ``reason``, and what it means."""
