"""Functions that several commands use."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from unicodedata import category


def as_options(message: str) -> str:
    """Return an error message with the keys of the configuration as options: --train.max-steps.

    Messages on files and on keys to vary stay as they are.
    """
    from paramgolf.config import RunConfig

    if any(words in message for words in (".json", "--vary", "--cell", "did you mean")):
        return message
    keys = {
        f"{section.name}.{key.name}"
        for section in dataclasses.fields(RunConfig)
        if dataclasses.is_dataclass(section.default_factory)
        for key in dataclasses.fields(section.default_factory)
    }

    def option(match: re.Match[str]) -> str:
        key = match[0]
        return "--" + key.replace("_", "-") if key in keys or "." not in key else key

    message = re.sub(r"(?<=^invalid )[a-z_]+(?= = )", option, message)
    return re.sub(r"(?<![\w./-])[a-z_]+\.[a-z_]+(?![\w.])", option, message)


def printable(text: str | Path, kept: str = "") -> str:
    """Return a text or path with U+FFFD in place of what could control or stop the console.

    Args:
        text: the text; undecodable bytes of a path are halves of surrogate pairs in it.
        kept: control characters that are kept.
    """
    controls = ("Cc", "Cs", "Zl", "Zp")
    return "".join("\ufffd" if category(c) in controls and c not in kept else c for c in str(text))


def recipe_usage(command: str) -> str:
    """Return the help of a command that starts with a recipe."""
    from paramgolf.recipes import RECIPES

    return "\n".join(
        [
            *_RECIPE_COMMANDS[command],
            "  --KEY VALUE            any key of the recipe, such as --train.max-steps 100;",
            f"                         `paramgolf {command} RECIPE --help` lists all of them",
            "",
            "recipes:",
            *(f"  {name:<16}  {purpose}" for name, (purpose, _) in RECIPES.items()),
        ]
    )


_RECIPE_COMMANDS = {
    "run": [
        "usage: paramgolf run RECIPE [--KEY VALUE ...]",
        "       paramgolf run --config FILE [--KEY VALUE ...]",
        "       paramgolf run --resume DIR [--until STAGE]",
        "",
        "Train, adapt, quantize, pack and score a model. Start with `paramgolf run tiny`.",
        "",
        "options:",
        "  --out DIR              run directory to create; default: runs/RECIPE-DATE-TIME",
        "  --from RUN             reuse the text and the trained weights of another run",
        "  --until STAGE          stop after prepare, train, adapt or pack; --resume goes on",
        "  --dry-run              only check that the run can succeed; estimate its time",
        "  --log wandb            also send the metrics to wandb or tensorboard",
    ],
    "seeds": [
        "usage: paramgolf seeds RECIPE --seeds N... [--out DIR] [--KEY VALUE ...]",
        "",
        "Run a recipe with several seeds: mean, standard deviation, range and worst seed.",
        "",
        "options:",
        "  --seeds N...           seeds of the runs, such as --seeds 1337 42 999; required",
        "  --out DIR              folder of the runs; default: runs/seeds-RECIPE. Finished",
        "                         runs in it are not repeated",
    ],
    "ablate": [
        "usage: paramgolf ablate RECIPE --vary KEY=A,B... [--seeds N...] [--KEY VALUE ...]",
        "       paramgolf ablate RECIPE --cell KEY=VALUE... --cell KEY=VALUE... [...]",
        "",
        "Run variants of a recipe: a table and a plot.",
        "",
        "options:",
        "  --vary KEY=A,B,...     a key and its values, such as train.matrix-lr=0.02,0.04;",
        "                         several --vary span a grid",
        "  --cell KEY=VALUE...    one variant by all that it changes, instead of a grid; without",
        "                         settings, the recipe itself",
        "  --until STAGE          stop after train, adapt or pack and compare that score",
        "  --from RUN             reuse the text of another run, and what else is the same",
        "  --seeds N...           seeds of every cell; default: the recipe's",
        "  --out DIR              folder of the runs; default: runs/ablate-RECIPE. Finished",
        "                         runs in it are not repeated",
    ],
}


def usage() -> str:
    """Return the overview of all commands and recipes."""
    from paramgolf.recipes import RECIPES

    lines = [
        "usage: paramgolf COMMAND ...",
        "",
        "Train, adapt, quantize, pack and score the best language model that fits a",
        "byte budget.",
        "",
        "commands:",
        "  run RECIPE [--KEY VALUE ...]     train, pack and score; try `run tiny`",
        "  run --resume DIR                 resume an interrupted run",
        "  score RUN FILE...                measure the bits per byte of any text",
        "  generate RUN --prompt TEXT       generate text with the packed model",
        "  serve RUN                        serve a page and OpenAI-style completions",
        "  compress RUN FILE --out F        compress a text with the packed model",
        "  decompress RUN F --out FILE      restore a compressed text",
        "  prove RUN                        code the scored text, decode it elsewhere",
        "  audit RUN                        check what the score depends on",
        "  verify FOLDER                    make a run again and compare what it claims",
        "  report RUN [OTHER]               write an HTML page about one or two runs",
        "  list [FOLDER...]                 list runs with score, size and audit",
        "  bundle RUN --out DIR             write a folder that works on its own",
        "  seeds RECIPE --seeds N...        run several seeds: mean, deviation, range",
        "  compare A B                      test whether A beats B by a margin",
        "  ablate RECIPE --vary KEY=A,B     run a grid or a list of variants",
        "  submission SEEDS... --out DIR    write a folder to submit",
        "  export RUN --out DIR             write the model for transformers or lm_eval",
        "  data build|fetch|info            build, download or check token shards",
        "",
        "recipes:",
        *(f"  {name:<16}  {purpose}" for name, (purpose, _) in RECIPES.items()),
        "",
        "options: --help (also after a command), --version, --verbose (print more),",
        "         --debug (show tracebacks), --print-completion bash|zsh",
    ]
    return "\n".join(lines)
