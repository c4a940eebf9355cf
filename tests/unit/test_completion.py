"""Shell completion: its words are those of the commands, and bash takes the script."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from versatune_ray.commands import COMMANDS, command
from versatune_ray.commands.completion import _JOB, OPTIONS, script


def completed(*words: str) -> list[str]:
    """What bash offers for the last of ``words``."""
    line = " ".join(f'"{word}"' for word in words)
    call = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _versatune; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash", "-c", f"{script('bash', COMMANDS)}\n{call}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_and_keys() -> None:
    assert completed("versatune", "fin") == ["finetune"]
    assert completed("versatune", "") == list(COMMANDS)
    assert completed("versatune", "chat", "--p") == ["--prompt"]
    assert completed("versatune", "finetune", "--pl") == ["--plan"]
    assert completed("versatune", "sweep", "training.epo") == ["training.epochs="]
    # files are the shell's own
    assert completed("versatune", "finetune", "--config", "m") == []
    assert completed("versatune", "push", "ru") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_all_commands_and_keys(shell: str) -> None:
    text = script(shell, COMMANDS)
    assert all(re.search(rf"\b{name}\b", text) for name in COMMANDS)
    assert "mixture.policy=" in text and "NAME" not in text and "@" not in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("name", [*OPTIONS, "finetune", "replay"])
def test_the_options_that_are_completed_are_those_of_the_command(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["versatune", name, "--help"])
    with pytest.raises(SystemExit):
        command()
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 40
    # as they stand in the list of options, not in the text around it
    listed = re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w-]+)", said, re.MULTILINE)
    assert {*OPTIONS.get(name, _JOB)} == set(listed)
