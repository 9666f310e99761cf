"""``gatokit completion``: prints a script that completes commands and their options in a shell.

The script lists what this version has, and does not start Python while one types.
"""

import argparse
from collections.abc import Mapping

EXAMPLE = """eval "$(gatokit completion bash)"                                     # in ~/.bashrc
  eval "$(gatokit completion zsh)"                                      # in ~/.zshrc, after compinit
  gatokit completion fish > ~/.config/fish/completions/gatokit.fish"""

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def run(arguments: argparse.Namespace) -> int:
    """Prints the script; with ``--json`` as {"script": …}."""
    from gatokit.cli.console import Output
    from gatokit.cli.main import VERBS, verb_parser

    options = {}
    for verb in VERBS:
        actions = verb_parser(verb)._actions
        options[verb] = [action for action in actions if action.option_strings or action.choices]
    script = _fish(options, VERBS) if arguments.shell == "fish" else _bash(options, zsh=arguments.shell == "zsh")
    output = Output(arguments.json)
    if not output.as_json:
        print(script)
    output.result({"script": script})
    return 0


def _bash(options: Mapping[str, list[argparse.Action]], zsh: bool) -> str:
    cases = []
    for verb, actions in options.items():
        words: list[str] = []
        for action in actions:
            words += action.option_strings
            choices = " ".join(map(str, action.choices or ()))
            if choices and action.option_strings:
                cases.append(f"      {verb}:{action.option_strings[-1]}) words='{choices}' ;;")
            elif choices:
                words.append(choices)
        cases.append(f"      {verb}:*) words='{' '.join(words)}' ;;")
    lines = [
        *(["autoload -U +X bashcompinit && bashcompinit"] if zsh else []),
        "_gatokit() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        "  if [ $COMP_CWORD -eq 1 ]; then",
        f"    words='{' '.join(options)} --help --version'",
        "  else",
        '    case "${COMP_WORDS[1]}:$before" in',
        *cases,
        "    esac",
        "  fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _gatokit gatokit",
    ]
    return "\n".join(lines)


def _fish(options: Mapping[str, list[argparse.Action]], verbs: Mapping[str, str]) -> str:
    lines = [
        f"complete -c gatokit -n __fish_use_subcommand -a {verb} -d {_quoted(does)}" for verb, does in verbs.items()
    ]
    for verb, actions in options.items():
        for action in actions:
            choices = " ".join(map(str, action.choices or ()))
            words = [f"complete -c gatokit -n '__fish_seen_subcommand_from {verb}'"]
            words += [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in action.option_strings]
            words += [f"-x -a '{choices}'"] if choices else ["-r"] if action.nargs != 0 else []
            lines.append(" ".join([*words, f"-d {_quoted(action.help or '')}"]))
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
