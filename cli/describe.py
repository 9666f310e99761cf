"""``gatokit describe``: shows every field of a source of episodes, and writes a config that builds it."""

import argparse
import os
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gatokit.cli.console import Output, needs, positive
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.words import byte_size, counted, one_line

if TYPE_CHECKING:
    from gatokit.pipelines.describe.proposal import Proposal, ProposedField
    from gatokit.pipelines.describe.source import Description

EXAMPLE = """gatokit describe data/droid
  gatokit describe 'data/metaworld/*' --write metaworld.yaml
  gatokit describe gs://bucket/bridge --splits train val --json

Looks at the first episodes of files that are spread over the source: at about 256 of them, and at most 512 MiB. The
config that --write gives builds as it is. In it stand all fields, also those that are not used, with the reasons."""

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SHOWN = 60
"""Characters of a text in a table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    option = parser.add_argument
    option("source", metavar="SOURCE", help="directory, or pattern of directories, as `source` in a config")
    option("--write", metavar="FILE", help="write a build config that builds the source; FILE must not exist")
    option("--vocabulary", metavar="FILE", help="with --write: the config's vocabulary, if there is one already")
    option("--episodes", type=positive, default=256, metavar="N", help="look at about N episodes (default: 256)")
    option("--all", action="store_true", help="look at all episodes, so that the numbers are those of the whole source")
    option("--splits", nargs="+", metavar="SPLIT", help="splits to look at (default: train if there is one, else all)")


def run(arguments: argparse.Namespace) -> int:
    """Looks at the source, shows what is in it, and writes the config."""
    with needs("build"):
        from gatokit.pipelines.describe.config_text import config_text
        from gatokit.pipelines.describe.proposal import propose
        from gatokit.pipelines.describe.source import describe
    from gatokit.storage.files import exists, write_new

    output, write = Output(arguments.json), arguments.write
    taken = ConfigError(f"--write {write}: the file exists already; remove it or choose another name")
    if write is not None and (exists(write) or os.path.islink(write)):
        raise taken
    splits = None if arguments.splits is None else tuple(arguments.splits)
    with output.progress() as progress:
        found = describe(
            arguments.source, splits=splits, episodes=None if arguments.all else arguments.episodes, progress=progress
        )
    proposal = propose(found, _name(arguments.source), _from_config(arguments.source, write))
    vocabulary = arguments.vocabulary and _from_config(arguments.vocabulary, write)
    text = config_text(found, proposal, vocabulary, os.path.basename(write or "config.yaml"))
    if write is not None:
        try:
            write_new(write, text.encode())
        except FileExistsError:
            raise taken from None
    _show(found, proposal, output)
    if write is None:
        output.say(f"next: gatokit describe {arguments.source} --write config.yaml")
    else:
        needs_vocabulary = proposal.has_text and vocabulary is None
        first = f"gatokit vocab {write} --out {os.path.join(os.path.dirname(write), 'vocabulary.model')}; "
        output.say(f"wrote {write}; next: {first if needs_vocabulary else ''}gatokit scan {write} --out scanned")
    output.result(_result(found, proposal) | {"config": text, "written": write})
    return 0


def _name(source: str) -> str:
    """A name for the dataset: the last component of the source that is no pattern and no version."""
    parts = [part for part in source.rstrip("/").split("/") if part not in ("", ".", "..", "gs:")]
    plain = [part for part in parts if not re.search(r"[*?\[\]]", part) and not _VERSION.fullmatch(part)]
    name = re.sub(r"[^A-Za-z0-9_.\-]+", "_", plain[-1] if plain else "").strip("_.-")[:100]
    return name or "episodes"


def _from_config(path: str, config: str | None) -> str:
    """A path of the command line as the config at ``config`` names it."""
    path = os.path.expanduser(path)
    if config is None or re.match("gs:/", path) or os.path.isabs(path):
        return path
    if re.match("gs:/", config):
        return os.path.abspath(path)
    return os.path.relpath(path, os.path.dirname(config) or ".")


# --- what is printed -----------------------------------------------------------------------------------------


def _show(found: "Description", proposal: "Proposal", output: Output) -> None:
    of = "" if found.episodes is None else f" of {found.episodes:,}"
    lengths = "" if found.lengths is None else ", steps min {} median {:g} max {}".format(*found.lengths)
    output.say(
        f"{one_line(found.source)}: {found.format}, {counted(len(found.directories), 'directory')}, "
        f"{byte_size(found.bytes)}; looked at {found.seen:,}{of} episodes{lengths}".replace("directorys", "directories")
    )
    if found.splits:
        said = ", ".join(f"{one_line(s.name)} {s.episodes:,}{'' if s.is_read else ' (left out)'}" for s in found.splits)
        output.say(f"splits: {said}")
    ends = found.ends
    if ends.rewards is None or ends.in_last is None or ends.before is None:
        output.say("rewards: none")
    else:
        output.say(
            f"rewards: {ends.rewards:,} distinct; other than 0 in the last step of {ends.in_last:.0%} of the episodes, "
            f"before it in {ends.before:.0%}"
        )
    output.say(f"last actions: {_counts(ends.last_action)}; last rewards: {_counts(ends.last_reward)}")
    columns = [
        "field",
        "type",
        "becomes",
        "tokens",
        "share",
        "min",
        "max",
        "q01",
        "q99",
        "distinct",
        "constant",
        "values",
    ]
    lines = [_row(field, proposal.tokens) for field in proposal.fields]
    count = sum(field.described.belongs_to == "step" for field in proposal.fields)
    heading = ["values of an episode:", *[None] * (len(columns) - 1)]
    output.table("fields of a step", columns, [*lines[:count], *([heading] if lines[count:] else []), *lines[count:]])
    from gatokit.pipelines.describe.config_text import flow_yaml

    rows = [
        [key, flow_yaml(candidate.value), one_line(candidate.reason)]
        for key, candidates in proposal.candidates.items()
        for candidate in candidates
    ]
    if rows:
        output.table("candidates", ["for", "value", "because"], rows)
    for complaint in proposal.complaints:
        output.notice(one_line(complaint))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "none"


def _row(field: "ProposedField", total: int) -> list[Any]:
    source, values = field.described.source, field.described.statistics
    shape = "×".join("?" if side is None else str(side) for side in source.shape)
    shares = {"black": values.black, "NaN": values.not_finite, "empty": values.empty}
    notes = [f"{share:.2%} {name}" for name, share in shares.items() if share]
    examples = [f"'{one_line(example, _SHOWN)}'" for example in values.examples[:2]]
    return [
        one_line(field.path),
        f"{source.dtype or one_line(source.type_name)} {shape}",
        one_line(f"skip: {field.why}" if field.becomes == "nothing" else field.becomes, _SHOWN),
        field.tokens,
        None if not field.tokens or not total else f"{field.tokens / total:.1%}",
        *map(_rounded, (values.min, values.max, values.q01, values.q99)),
        None if values.distinct is None else f"{values.distinct:,}{'+' * (values.distinct == 1000)}",
        None if values.constant is None else f"{values.constant:.0%}",
        "; ".join([*notes, ", ".join(examples)] if examples else notes),
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _result(found: "Description", proposal: "Proposal") -> dict[str, Any]:
    """All of it, for programs."""
    ends = {key: value for key, value in asdict(found.ends).items() if key not in ("lasts", "returns")}
    keys = ("source", "format", "directories", "missing", "episodes", "seen", "bad", "is_all", "bytes", "lengths")
    return {
        **{key: getattr(found, key) for key in keys},
        "splits": [asdict(split) for split in found.splits],
        "ends": ends,
        "fields": [
            {
                "path": field.path,
                "belongs_to": field.described.belongs_to,
                "dtype": field.described.source.dtype,
                "shape": field.described.source.shape,
                "type": field.described.source.type_name,
                "directories": field.described.directories,
                "becomes": field.becomes,
                "tokens": field.tokens,
                "share": field.tokens / proposal.tokens if field.tokens and proposal.tokens else None,
                "rule": field.rule,
                "why": field.why,
                **asdict(field.described.statistics),
            }
            for field in proposal.fields
        ],
        "candidates": {
            key: [asdict(candidate) for candidate in candidates] for key, candidates in proposal.candidates.items()
        },
        "complaints": proposal.complaints,
    }
