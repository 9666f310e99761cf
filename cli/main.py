"""The ``gatokit`` command: finds the verb, turns errors into a sentence and an exit status."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from gatokit.schemas.errors import ConfigError, GatokitError

VERBS = ("demo", "vocab", "scan", "build", "inspect", "verify", "gc", "train", "export", "evaluate", "generate")
"""Each is a module beside this one with ``add(commands)``; its parser's default ``run`` does the work."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0: done; 1: the data failed a check; 2: the arguments or the config are wrong."""
    parser = _Parser(prog="gatokit", description="The data side of a generalist agent.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=_Parser)
    for verb in VERBS:
        importlib.import_module(f"gatokit.cli.{verb}").add(commands)
    logging.getLogger().setLevel(logging.ERROR)
    try:
        known, rest = parser.parse_known_args(arguments)
        if rest and not known.takes_beam_options:
            raise ConfigError(f"unknown argument {rest[0]!r}; see gatokit {known.verb} --help")
        if known.takes_beam_options:
            known.beam_options = rest
        return int(known.run(known) or 0)
    except GatokitError as error:
        print(f"gatokit: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("gatokit: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
