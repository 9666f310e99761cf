"""The ``gatokit`` command: finds the verb, and turns errors into a sentence and an exit status.

Only the module of the chosen verb is imported, and a verb's module imports what it needs when it runs, so that help and
completion are quick.
"""

import argparse
import importlib
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

import gatokit
from gatokit.schemas.errors import ConfigError, GatokitError
from gatokit.schemas.words import ascii_json, did_you_mean, one_line, visible_lines

VERBS = {
    "demo": "record real episodes, build, verify and inspect them, train on them and play, in minutes on two cores",
    "describe": "show every field of a source of episodes, and write a config that builds it",
    "vocab": "train the SentencePiece model that a build tokenizes text with, on the config's text",
    "scan": "read no images, and say what the filter would keep",
    "build": "filter, tokenize and write sharded ArrayRecord files; run again to go on where it stopped",
    "inspect": "show what a build or scan holds, decode an episode or document, preview other rules, or compare",
    "verify": "check every file, record and index row of a finished build or scan; exit 1 and one line per fault",
    "publish": "copy a finished build for other people: sources as names only, without a log, with a card",
    "gc": "remove what killed builds left in a directory, and nothing that its manifest names",
    "train": "train on built directories; run again to go on where it stopped",
    "export": "write a run's weights as safetensors, with all that a policy needs beside them",
    "evaluate": "play a policy in its environments and score it",
    "generate": "let a policy continue a text, or caption a picture",
    "completion": "print a script that completes gatokit's commands in a shell",
}
"""What each command does. A command is a module beside this one with ``EXAMPLE``, ``add_arguments(parser)`` and
``run(arguments)``; ``TAKES_BEAM_OPTIONS`` if it passes unknown options to Beam, and ``RETIRED`` if options of it were
renamed or dropped: what to write instead, by option."""

_LINES = re.compile(r"\n(?=  )")
_MOST_SHOWN = 2_000

_OVERVIEW = """usage: gatokit COMMAND ...

The data side of a generalist agent, and the trainer that proves it.

{commands}

gatokit COMMAND --help shows a command's arguments and an example; gatokit --version the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0: done; 1: the data failed a check; 2: the arguments or the config are wrong.

    128 and the number of a signal: interrupted. A build or scan is by SIGINT, SIGTERM and SIGHUP, and cleans up first.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger().setLevel(logging.ERROR)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_VisibleFormatter())
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no UTF-8; JSON has the same escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments is None:
        sys.excepthook = _show_traceback
    caught = _caught_signals() if arguments is None and words[:1] in (["build"], ["scan"]) else []
    try:
        return _run(words)
    except BaseException as error:
        if caught or isinstance(error, KeyboardInterrupt):
            with suppress(OSError):  # the terminal may be gone
                _report(words, "interrupted", "interrupted", "run the same command again to go on")
                sys.stderr.flush()
            if caught:
                os._exit(128 + caught[0])  # Beam's threads may abort an interpreter that ends
            return 130
        if isinstance(error, GatokitError):
            _report(words, error.code, error.problem, error.way_out)
            return error.exit_status
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            return 0
        raise


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's ``sys.excepthook``, with what could be obeyed by a terminal shown as text."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write("\n".join(visible_lines(text)))


def _caught_signals() -> list[int]:
    """A list that gets the first of the signals that end a command, which raises KeyboardInterrupt. The second ends the
    process at once."""
    caught: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for each in handled:
            signal.signal(each, signal.SIG_DFL)
        # Threads of Beam tell of every connection that ends now.
        threading.excepthook = lambda arguments: None
        logging.disable()
        raise KeyboardInterrupt

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handled = [number for number in ends if signal.getsignal(number) is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, interrupt)
    return caught


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb's arguments; imports the verb's module."""
    module = importlib.import_module(f"gatokit.cli.{verb}")
    does = VERBS[verb]
    beam = "\n\nEvery other option is Apache Beam's, such as --runner or --project."
    parser = _Parser(
        prog=f"gatokit {verb}",
        description=does[0].upper() + does[1:] + ".",
        epilog=f"example:\n  {module.EXAMPLE}" + (beam if hasattr(module, "TAKES_BEAM_OPTIONS") else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    module.add_arguments(parser)
    parser.set_defaults(verb=verb)
    return parser


class _VisibleFormatter(logging.Formatter):
    """Shows what libraries log, in which texts of data may stand, as text."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(visible_lines(super().format(record)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, way_out=f"see {self.prog} --help", code="usage")


def _run(words: list[str]) -> int:
    verb, *words = words or ["--help"]
    if verb in ("-h", "--help"):
        width = max(map(len, VERBS))
        commands = "\n".join(f"  {verb:{width}}  {does}" for verb, does in VERBS.items())
        print(_OVERVIEW.format(commands=commands))
        return 0
    if verb == "--version":
        print(f"gatokit {gatokit.__version__}")
        return 0
    if verb not in VERBS:
        way_out = did_you_mean(verb, VERBS) or "gatokit --help lists the commands"
        raise ConfigError(f"there is no command {verb!r}", way_out=way_out, code="usage")
    parser = verb_parser(verb)
    module: Any = importlib.import_module(f"gatokit.cli.{verb}")
    retired = getattr(module, "RETIRED", {})
    for name in (word.partition("=")[0] for word in words):
        if name in retired:
            raise ConfigError(f"{name} is no longer an option", way_out=retired[name], code="usage")
    known, rest = parser.parse_known_args(words)
    if hasattr(module, "TAKES_OVERRIDES"):  # also behind options
        known.overrides += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if word not in known.overrides]
    if hasattr(module, "TAKES_BEAM_OPTIONS"):
        known.beam_options = rest
    elif rest:
        name = rest[0].partition("=")[0]
        way_out = did_you_mean(name, parser._option_string_actions) or f"see gatokit {verb} --help"
        raise ConfigError(f"unknown argument {rest[0]!r}", way_out=way_out, code="usage")
    return int(module.run(known) or 0)


def _report(words: list[str], code: str, problem: str, way_out: str | None) -> None:
    """Prints what went wrong on standard error, and with ``--json`` on standard output too."""
    print(message_text(f"gatokit: {problem}", way_out), file=sys.stderr)
    if "--json" in words:
        error = {"code": code, "message": problem, "way_out": way_out}
        print(ascii_json({"error": error}), flush=True)


def message_text(problem: str, way_out: str | None) -> str:
    """A message for a terminal, at most ``_MOST_SHOWN`` characters of each line of the problem and of the way out.

    Lines of a message after its first begin with two spaces; other line breaks are part of a name or value, and shown
    as escapes."""
    texts = [problem] if way_out is None else [problem, way_out]
    return "; ".join("\n".join(one_line(line, _MOST_SHOWN) for line in _LINES.split(text)) for text in texts)


if __name__ == "__main__":
    sys.exit(main())
