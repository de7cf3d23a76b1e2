"""Completion of commands, recipes and keys in bash and zsh."""

from __future__ import annotations

from collections.abc import Iterable

from paramgolf.checked import to_json
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError
from paramgolf.recipes import RECIPES

_BASH = """\
_paramgolf() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" = 1 ]; then words="{commands}"
  else case "${{COMP_WORDS[1]}} $COMP_CWORD" in
    "data 2") words="build fetch info";;
    "run 2"|"seeds 2"|"ablate 2") words="{recipes}";;
    "run "*|"seeds "*|"ablate "*) words="{keys}";;
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _paramgolf paramgolf"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: str, commands: Iterable[str]) -> str:
    """Return the code that teaches a shell to complete `paramgolf`.

    Args:
        shell: bash or zsh.
        commands: all commands.

    Raises:
        ConfigError: if the shell is another one.
    """
    if shell not in ("bash", "zsh"):
        raise ConfigError(f"--print-completion {shell}: expected bash or zsh")
    keys = ["--seed", "--device", "--out"]
    for section, values in to_json(RunConfig()).items():
        if isinstance(values, dict):
            keys += [f"--{section}.{key}".replace("_", "-") for key in values]
    words = {"commands": commands, "recipes": RECIPES, "keys": keys}
    code = _BASH.format(**{name: " ".join(some) for name, some in words.items()})
    return _ZSH * (shell == "zsh") + code
