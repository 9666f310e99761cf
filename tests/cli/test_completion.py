"""The scripts that complete commands in a shell."""

import shutil
import subprocess

import pytest

from gatokit.cli.main import VERBS, main

ASK = """
{script}
COMP_WORDS=({words} "$1") COMP_CWORD={position}
_gatokit
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(script: str, words: str, begun: str) -> list[str]:
    """What bash offers for ``begun`` behind ``words``."""
    program = ASK.format(script=script, words=words, position=len(words.split()))
    done = subprocess.run(["bash", "-c", program, "bash", begun], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_options_and_their_values(gatokit):
    script = gatokit("completion", "bash").out
    assert completed(script, "gatokit", "ver") == ["verify"]
    assert set(completed(script, "gatokit", "")) == {*VERBS, "--help", "--version"}
    assert completed(script, "gatokit inspect", "--ser") == ["--serve"]
    assert completed(script, "gatokit evaluate --rule", "") == ["median", "sample", "greedy"]
    assert completed(script, "gatokit completion", "") == ["-h", "--help", "--json", "bash", "zsh", "fish"]
    assert completed(script, "gatokit build --out", "--") != []


def test_zsh_reads_the_same_script_through_its_own_bridge(gatokit):
    script = gatokit("completion", "bash").out
    assert gatokit("completion", "zsh").out == "autoload -U +X bashcompinit && bashcompinit\n" + script


def test_fish_has_a_line_a_command_and_an_option(gatokit):
    lines = gatokit("completion", "fish").out.splitlines()
    assert {line.split()[6] for line in lines if "__fish_use_subcommand" in line} == set(VERBS)
    [line] = [line for line in lines if "from evaluate'" in line and " -l rule " in line]
    assert "-x -a 'median sample greedy'" in line
    [line] = [line for line in lines if "from inspect'" in line and " -l document " in line]
    assert " -l episode " in line
    if fish := shutil.which("fish"):
        subprocess.run([fish, "--no-execute", "-c", "\n".join(lines)], check=True)


def test_another_shell_is_refused(capsys):
    assert main(["completion", "csh"]) == 2
    assert "choose from" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_with_json_the_script_is_a_string(shell, gatokit):
    assert gatokit("completion", shell, "--json").json == {"script": gatokit("completion", shell).out.rstrip("\n")}
