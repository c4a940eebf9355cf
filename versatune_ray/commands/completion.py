"""``versatune completion``: a script by which a shell completes commands, options, keys and files.

It is made once, and holds all the words: to ask Python at every tab would take a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from versatune_ray.cli import Parser
from versatune_ray.settings.keys import names

_JOB = ("--config", "--plan", "--keys", "--print-config", "--open", "--debug", "--help")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "init": ("--model", "--output", "--debug", "--help"),
    "preview": (
        "--config",
        "--records",
        "--all",
        "--json",
        "--keys",
        "--print-config",
        "--debug",
        "--help",
    ),
    "report": ("--output", "--follow", "--live", "--port", "--open", "--debug", "--help"),
    "soup": ("--weights", "--output", "--debug", "--help"),
    "completion": ("--debug", "--help"),
    "chat": ("--prompt", "--no-base", "--raw", "--tokens", "--temperature", "--debug", "--help"),
    "serve": ("--debug", "--help"),
    "push": ("--dry-run", "--public", "--base", "--gguf", "--llama-cpp", "--debug", "--help"),
}
# of these the words are folders of runs; of all others, keys of a configuration
_RUNS = ("report", "soup", "chat", "serve", "push")
_FILES = ("--config", "--json", "--output", "--llama-cpp", "-o")

_BASH = """\
# versatune, completed: keep this where your shell reads it, or  source <(versatune completion bash)
_versatune() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} options=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "@COMMANDS@" -- "$word"))
    return
  fi
  case $before in @FILES@) return ;; esac
  case ${COMP_WORDS[1]} in
@CASES@
    *) options="@JOB@" ;;
  esac
  case $word in -*) COMPREPLY=($(compgen -W "$options" -- "$word")); return ;; esac
  case ${COMP_WORDS[1]} in
    @RUNS@ | init) ;;
    *)
      COMPREPLY=($(compgen -W "@KEYS@" -- "$word"))
      compopt -o nospace 2>/dev/null
      ;;
  esac
  return 0
}
complete -o default -F _versatune versatune
"""


def command(what: str, arguments: Sequence[str]) -> None:
    """Print the script."""
    parser = Parser(
        prog="versatune completion",
        description=what,
        epilog="bash, zsh: source <(versatune completion bash)   fish: … fish | source",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    from versatune_ray.commands import COMMANDS

    print(script(parser.parse_args(arguments).shell, COMMANDS), end="")


def script(shell: str, commands: Mapping[str, str]) -> str:
    """The script for a shell: ``bash``, ``zsh`` or ``fish``.

    Args:
        commands: what each is for, by its name.
    """
    if shell == "fish":
        return _fish(commands)
    cases = [f'    {name}) options="{" ".join(options)}" ;;' for name, options in OPTIONS.items()]
    text = (
        _BASH.replace("@COMMANDS@", " ".join(commands))
        .replace("@FILES@", " | ".join(_FILES))
        .replace("@CASES@", "\n".join(cases))
        .replace("@JOB@", " ".join(_JOB))
        .replace("@RUNS@", " | ".join(_RUNS))
        .replace("@KEYS@", " ".join(f"{key}=" for key in _keys()))
    )
    head = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"
    return (head + text.replace("completion bash", "completion zsh")) if shell == "zsh" else text


def _fish(commands: Mapping[str, str]) -> str:
    start = "complete -c versatune"
    lines = ["# versatune, completed:  versatune completion fish | source"]
    lines += [
        f"{start} -f -n __fish_use_subcommand -a {name} -d {_quoted(what)}"
        for name, what in commands.items()
    ]
    for name in commands:
        seen = f'-n "__fish_seen_subcommand_from {name}"'
        for option in OPTIONS.get(name, _JOB):
            takes = " -r" if option in _FILES else ""
            lines.append(f"{start} {seen} -l {option.removeprefix('--')}{takes}")
    jobs = " ".join(name for name in commands if name not in (*_RUNS, "init", "completion"))
    keys = " ".join(f"{key}=" for key in _keys())
    lines.append(f'{start} -n "__fish_seen_subcommand_from {jobs}" -a {_quoted(keys)}')
    return "\n".join(lines) + "\n"


def _keys() -> list[str]:
    """Dotted keys that can be set as they are, in no list or mapping."""
    return [key for key in names() if "NAME" not in key.split(".")]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
