"""The command line: help, and what it says to mistakes."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import paramgolf.version
from paramgolf.config import RunConfig
from paramgolf.recipes import RECIPES
from tests.e2e import command
from tests.e2e.command import Cli, one_line_error
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import table_rows, unboxed

TINY = RECIPES["tiny"][1]

# Help.


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_usage(cli: Cli, arguments: list[str]) -> None:
    result = cli(*arguments)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: paramgolf COMMAND")
    for word in ("run RECIPE", "run --resume DIR", "score RUN FILE", "--version", "--debug"):
        assert word in result.stdout
    for recipe, (purpose, _) in RECIPES.items():
        assert f"  {recipe} " in result.stdout
        assert purpose in result.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("run", ("--out", "--from", "--resume", "--dry-run", "--config")),
        ("seeds", ("--seeds", "--out")),
        ("ablate", ("--vary", "--seeds", "--out")),
    ],
)
def test_help_of_commands_over_recipes(
    cli: Cli, name: str, options: tuple[str, ...], arguments: list[str]
) -> None:
    printed = cli.output(name, *arguments)
    assert printed.startswith(f"usage: paramgolf {name} RECIPE")
    for option in options:
        assert f" {option} " in printed
    assert f"`paramgolf {name} RECIPE --help` lists all" in printed
    for recipe in RECIPES:
        assert f"  {recipe} " in printed


@pytest.mark.parametrize("name", ["compress", "decompress"])
def test_help_of_compress_and_decompress(cli: Cli, name: str) -> None:
    printed = cli.output(name, "--help")
    assert printed.startswith(f"usage: paramgolf {name}")
    assert ("Restore a text" in printed) == (name == "decompress")


WITHOUT_TORCH = """
import atexit, os, sys
def check():
    sys.stdout.flush()
    if "torch" in sys.modules:
        os._exit(99)
atexit.register(check)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["--help"],
            ["--version"],
            ["--print-completion", "bash"],
            ["run", "tiny", "--help"],
            ["seeds", "tiny", "--help"],
        ),
        *(["ablate", "tiny", "--help"], ["run", "tiny", "--train.max-steps", "-1"]),
        *(["data", name, "--help"] for name in ("build", "fetch", "info")),
        *(
            [name, "--help"]
            for name in (
                *("run", "score", "compress", "decompress", "generate", "prove", "export", "audit"),
                *("bundle", "report", "seeds", "compare", "ablate", "submission", "data", "list"),
            )
        ),
    ],
    ids=" ".join,
)
def test_help_and_mistakes_do_not_wait_for_torch(tmp_path: Path, arguments: list[str]) -> None:
    ended = command.finish(command.start(*arguments, cwd=tmp_path, patch=WITHOUT_TORCH))
    assert ended.code == (2 if "-1" in arguments else 0), ended.stderr


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        (["aud"], ["audit"]),
        (["run", "ti"], ["tiny", "tiny-score-first"]),
        (["data", "f"], ["fetch"]),
        (["run", "tiny", "--train.max-st"], ["--train.max-steps"]),
        (["score", "x"], []),
    ],
)
def test_completion(cli: Cli, line: list[str], completed: list[str]) -> None:
    script = cli.output("--print-completion", "bash")
    words = " ".join(["paramgolf", *line])
    script += f'COMP_WORDS=({words}) COMP_CWORD={len(line)}; _paramgolf; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, text=True)
    assert done.stdout.split() == completed
    assert cli.output("--print-completion", "zsh").endswith(script.split("COMP_WORDS=(")[0])
    assert "bash or zsh" in cli.error("--print-completion", "fish", code=2)


def test_the_package_imports_torch_when_it_is_used() -> None:
    code = """
import sys, paramgolf
assert "torch" not in sys.modules
assert callable(paramgolf.load) and isinstance(paramgolf.Predictor, type)
assert "torch" in sys.modules and not hasattr(paramgolf, "other")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=command.TIMEOUT)


def _keys(config: RunConfig) -> dict[str, object]:
    """Every option of the command line with its value."""
    keys: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not dataclasses.is_dataclass(value):
            keys[f"--{field.name}"] = value
            continue
        for inner in dataclasses.fields(value):
            name = f"--{field.name}.{inner.name}".replace("_", "-")
            keys[name] = getattr(value, inner.name)
    return keys


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_of_a_recipe_lists_every_key_with_its_value(cli: Cli, recipe: str) -> None:
    result = cli("run", recipe, "--help")
    assert (result.code, result.stderr) == (0, "")
    text = unboxed(result.stdout)
    for key, value in _keys(RECIPES[recipe][1]).items():
        separator = ", " if isinstance(value, bool) else " "
        assert f" {key}{separator}" in text, key
        help_text = text.split(f" {key}{separator}", 1)[1]
        # The opposite of a flag follows it.
        help_text = help_text.split(" --", 1)[0]
        # A long path may be broken over two lines.
        shown = repr(value) if value == "" else str(value)
        assert f"(default:{shown})" in help_text.replace(" ", ""), (key, help_text)
    assert "--out" in text
    assert "--from" in text


@pytest.mark.parametrize("command_name", ["seeds", "ablate"])
def test_commands_over_recipes_have_their_keys(cli: Cli, command_name: str) -> None:
    text = unboxed(cli(command_name, "tiny", "--help").stdout)
    for key in ("--seeds", "--out", "--train.max-steps", "--score.stride"):
        assert f" {key} " in text


def test_score_help(cli: Cli) -> None:
    result = cli("score", "--help")
    assert (result.code, result.stderr) == (0, "")
    for option in ("--tokenizer", "--stride", "--device"):
        assert option in result.stdout


def test_version(cli: Cli) -> None:
    result = cli("--version")
    assert result == (0, f"paramgolf {paramgolf.version.__version__}\n", "")


def test_module_and_console_script_are_the_same_command(cli: Cli) -> None:
    expected = cli("--help")
    assert command.run("--help") == expected
    script = Path(sys.executable).with_name("paramgolf")
    if not script.exists():
        pytest.skip("the console script is not installed beside this Python")
    done = subprocess.run(
        [script, "--help"], env=command.ENVIRONMENT, capture_output=True, timeout=command.TIMEOUT
    )
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, expected.stdout, b"")


# Mistakes in what is asked for: exit code 2, and what is possible.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum"], ["'rum'", "Did you mean 'run'?", "run, score"]),
        (["train"], ["'train'", "run, score"]),
        (["--verison"], ["'--verison'", "run, score"]),
        (["run", "tniy"], ["'tniy'", "Did you mean 'tiny'?", *RECIPES]),
        (["run", "legal"], ["Did you mean 'tiny-score-first'?"]),
        (["seeds", "h200-legal"], ["Did you mean 'h200-score-first'?"]),
        (["run", "tiny", "--train.max-step", "3"], ["--train.max-step,", "--train.max-steps INT"]),
        (["run", "tiny", "--modle.width", "64"], ["--modle.width,", "--model.width INT"]),
        (["run", "tiny", "--train.max-steps", "some"], ["--train.max-steps", "'some'", "int"]),
        (["run", "tiny", "--train.max-steps"], ["'--train.max-steps'", "Missing value"]),
        (["run", "tiny", "--adapt.text", "scord"], ["'scord'", "'none', 'adapt', 'scored'"]),
        (["run", "tiny", "--device", "tpu"], ["'tpu'", "'auto', 'cpu', 'cuda'"]),
        (
            ["run", "tiny", "--score.stride", "9999"],
            ["--score.stride = 9999", f"at most --model.seq-len = {TINY.model.seq_len}"],
        ),
        (["run", "tiny", "--score.stride", "0"], ["--score.stride = 0", "greater than 0"]),
        (
            ["run", "tiny", "--adapt.frozen-blocks", "99"],
            ["--adapt.frozen-blocks = 99", f"below --model.num-layers = {TINY.model.num_layers}"],
        ),
        (
            ["run", "tiny", "--model.num-heads", "9"],
            [f"--model.width = {TINY.model.width}", "a multiple of --model.num-heads = 9"],
        ),
        (
            ["run", "tiny", "--train.batch-tokens", "5001"],
            ["--train.batch-tokens = 5001", "a multiple of --train.micro-batch-tokens"],
        ),
        (
            ["run", "tiny", "--train.matrix-lr", "nan"],
            ["--train.matrix-lr = nan", "greater than 0"],
        ),
        (
            ["run", "tiny", "--data.val-share", "0.95"],
            ["--data.val-share + --data.adapt-share", "below 1"],
        ),
        (["run", "tiny", "--seed", "-1"], ["invalid --seed = -1", "between 0 and"]),
        (["run", "tiny", "surplus"], ["surplus"]),
        (["run", "--resume"], ["--resume takes one run directory"]),
        (["run", "--resume", "x", "--seed", "3"], ["--resume", "no other option"]),
        (["seeds", "tniy"], ["'tniy'", "Did you mean 'tiny'?"]),
        (["seeds", "tiny"], ["name at least one seed", "--seeds 1337 42 999"]),
        (["seeds", "tiny", "--seeds", "1", "2", "1"], ["seed 1 is named twice"]),
        (["seeds", "tiny", "--seeds", "some"], ["--seeds", "'some'", "INT"]),
        (["seeds", "tiny", "--seed", "3", "--seeds", "1"], ["invalid --seed: name all seeds"]),
        (["seeds", "tiny", "--seeds", "1", "--score.stride", "0"], ["--score.stride = 0"]),
        (["ablate", "tiny"], ["name what to vary", "--vary train.matrix_lr=0.02,0.04"]),
        (["ablate", "tiny", "--vary", "train.matrx_lr=1"], ["did you mean train.matrix_lr?"]),
        (["ablate", "tiny", "--vary", "train.matrix-lr=1,no"], ["--train.matrix-lr = 'no'"]),
        (["compare", "a"], ["paramgolf compare"]),
        (["compare", "a", "b", "--margin-nats", "-1"], ["--margin-nats = -1", "0 or more"]),
        (["submission", "--out", "x"], ["paramgolf submission SEEDS..."]),
        (["record", "a", "--out", "x"], ["record was renamed: use `paramgolf submission`"]),
        (["submission", "a"], ["--out"]),
        (["score"], ["paramgolf score"]),
        (["score", "model.bin"], ["text file", "paramgolf score RUN FILE"]),
        (["score", "model.bin", "a.txt", "--stride", "-5"], ["--stride = -5", "at least -1"]),
        (["score", "model.bin", "a.txt", "--stirde", "5"], ["--stirde", "--stride INT"]),
        (["generate", "model.bin", "--max-tokens", "0"], ["--max-tokens = 0", "at least 1"]),
    ],
    ids=" ".join,
)
def test_misuse(cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    result = cli(*arguments, cwd=tmp_path)
    assert result.code == 2, result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = unboxed(result.stderr)
    for word in words:
        assert word in message
    assert list(tmp_path.iterdir()) == []


# Mistakes in files: exit code 1 and one line.


def test_resume_of_nothing(cli: Cli, tmp_path: Path) -> None:
    message = cli.error("run", "--resume", tmp_path / "nothing")
    assert "contains no run" in message
    assert "paramgolf run tiny" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["compare", "a", "b"], ["submission", "a", "--out", "x"]], ids=" ".join
)
def test_runs_that_are_not_there(cli: Cli, tmp_path: Path, arguments: list[str]) -> None:
    message = cli.error(*arguments, cwd=tmp_path)
    assert "a is neither a run (no config.json) nor a folder of seeds" in message
    assert list(tmp_path.iterdir()) == []


def test_seeds_over_a_run_of_another_configuration(
    cli: Cli, mini_run: FinishedRun, options: list[str], tmp_path: Path
) -> None:
    shutil.copytree(mini_run.path, tmp_path / "seeds" / "seed-1337")
    other = ("--train.max-steps", "7", "--out", tmp_path / "seeds")
    message = cli.error("seeds", "tiny", "--seeds", "1", *options, *other)
    assert "--train.max-steps = 6, not 7" in message
    result = cli("seeds", "tiny", "--seeds", "1337", *options, "--out", tmp_path / "seeds")
    assert (result.code, result.stderr) == (0, "")
    assert "finished" in table_rows(result.stdout)[-1]


@pytest.fixture
def folder(mini_run: FinishedRun, tmp_path: Path) -> Path:
    """A folder with an artifact, its tokenizer and its provenance, and a text."""
    for name in ("model.bin", "tokenizer.model", "provenance.safetensors"):
        (tmp_path / name).write_bytes((mini_run.path / name).read_bytes())
    (tmp_path / "text.txt").write_text("Some words to score.\n")
    return tmp_path


def _damage(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_score_works_before_anything_is_damaged(cli: Cli, folder: Path) -> None:
    result = cli("score", "model.bin", "text.txt", cwd=folder)
    assert (result.code, result.stderr) == (0, "")


def test_score_of_a_missing_artifact(cli: Cli, folder: Path) -> None:
    message = cli.error("score", "nothing.bin", "text.txt", cwd=folder)
    assert "nothing.bin: No such file" in message


def test_a_folder_stands_for_its_artifact(cli: Cli, folder: Path) -> None:
    of_file = cli.output("score", "model.bin", "text.txt", cwd=folder)
    assert cli.output("score", folder, "text.txt", cwd=folder) == of_file
    message = cli.error("score", folder.parent, folder / "text.txt")
    assert "contains no model.bin" in message
    assert f"name one of its runs, such as {folder}" in message


def test_score_of_a_foreign_artifact(cli: Cli, folder: Path) -> None:
    (folder / "model.bin").write_bytes((folder / "tokenizer.model").read_bytes())
    message = cli.error("score", "model.bin", "text.txt", cwd=folder)
    assert "model.bin is not a paramgolf artifact" in message


@pytest.mark.parametrize("kept", [0, 7, 40, 48, 1000, -1])
def test_score_of_a_truncated_artifact(cli: Cli, folder: Path, kept: int) -> None:
    content = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(content[:kept])
    message = cli.error("score", "model.bin", "text.txt", cwd=folder)
    assert "model.bin is" in message
    if kept < 0 or kept >= 48:
        assert "truncated or damaged" in message


@pytest.mark.parametrize("position", [3, 8, 12, 20, 60, -1])
def test_score_of_a_damaged_artifact(cli: Cli, folder: Path, position: int) -> None:
    _damage(folder / "model.bin", position)
    assert "model.bin" in cli.error("score", "model.bin", "text.txt", cwd=folder)


def test_score_of_an_artifact_of_a_later_version(cli: Cli, folder: Path) -> None:
    content = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(content[:8] + b"\7\0\0\0" + content[12:])
    message = cli.error("score", "model.bin", "text.txt", cwd=folder)
    assert "version 7; this program reads version 6" in message


def test_score_without_tokenizer(cli: Cli, folder: Path) -> None:
    (folder / "tokenizer.model").rename(folder / "elsewhere.model")
    arguments = ("score", "model.bin", "text.txt")
    assert "tokenizer.model: No such file" in cli.error(*arguments, cwd=folder)
    assert cli(*arguments, "--tokenizer", "elsewhere.model", cwd=folder).code == 0


def test_score_with_a_foreign_tokenizer(cli: Cli, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"no tokenizer at all")
    message = cli.error("score", "model.bin", "text.txt", cwd=folder)
    assert "tokenizer.model is not" in message


def test_score_with_another_artifacts_tokenizer(cli: Cli, folder: Path) -> None:
    from paramgolf.data.tokenizer_training import train_tokenizer

    other = train_tokenizer(["Other words, to train on, some few of them."] * 9, 285)
    (folder / "tokenizer.model").write_bytes(other)
    message = cli.error("score", "model.bin", "text.txt", cwd=folder)
    assert "tokenizer.model is not the tokenizer of model.bin" in message


def test_score_with_a_damaged_provenance(cli: Cli, folder: Path) -> None:
    _damage(folder / "provenance.safetensors", -1)
    message = cli.error("score", "model.bin", "text.txt", cwd=folder)
    assert "provenance.safetensors is not the provenance of model.bin" in message


def test_score_of_a_missing_text(cli: Cli, folder: Path) -> None:
    message = cli.error("score", "model.bin", "nothing.txt", cwd=folder)
    assert "nothing.txt does not exist" in message


def test_score_of_a_text_that_is_not_utf8(cli: Cli, folder: Path) -> None:
    (folder / "latin.txt").write_bytes("Voil\u00e0 du texte".encode("latin-1"))
    message = cli.error("score", "model.bin", "latin.txt", cwd=folder)
    assert "latin.txt is not UTF-8 text (byte 4)" in message


def test_score_of_an_empty_text(cli: Cli, folder: Path) -> None:
    (folder / "empty.txt").touch()
    assert "empty" in cli.error("score", "model.bin", "empty.txt", cwd=folder)


def test_score_counts_the_bytes_of_what_sentencepiece_takes_for_a_space(
    cli: Cli, folder: Path
) -> None:
    (folder / "block.txt").write_text("one\u2581two", encoding="utf-8")
    result = cli("score", "model.bin", "block.txt", cwd=folder)
    assert result.code == 0
    assert table_rows(result.stdout)[0][4] == "9"


def test_one_bad_text_among_good_ones_is_named(cli: Cli, folder: Path) -> None:
    (folder / "empty.txt").touch()
    message = cli.error("score", "model.bin", "text.txt", "empty.txt", cwd=folder)
    assert "empty.txt" in message


def test_score_with_a_stride_over_the_window(cli: Cli, folder: Path) -> None:
    """Windows that far apart would leave targets between them without a score."""
    (folder / "text.txt").write_text("Some words to score. " * 40)
    result = cli("score", "model.bin", "text.txt", "--stride", "65", cwd=folder)
    assert result.code in (1, 2)
    assert "stride" in one_line_error(result, result.code)
    assert cli("score", "model.bin", "text.txt", "--stride", "64", cwd=folder).code == 0


def test_score_on_a_device_that_is_not_there(cli: Cli, folder: Path) -> None:
    result = cli("score", "model.bin", "text.txt", "--device", "quantum", cwd=folder)
    assert "auto, cpu or cuda" in one_line_error(result, result.code)
    assert result.code in (1, 2)


def test_score_tells_files_with_long_names_apart(cli: Cli, folder: Path) -> None:
    names = [f"{'a-long-name-' * 9}{number}.txt" for number in (1, 2)]
    for name in names:
        (folder / name).write_text("Some words to score.\n")
    result = cli("score", "model.bin", *names, cwd=folder)
    assert result.code == 0
    printed = "".join(unboxed(result.stdout).split())
    for number in (1, 2):
        assert f"{number}.txt" in printed


# --debug.


def test_debug_shows_where(cli: Cli, folder: Path) -> None:
    for arguments in (
        ("--debug", "score", "nothing.bin", "text.txt"),
        ("score", "nothing.bin", "text.txt", "--debug"),
    ):
        result = cli(*arguments, cwd=folder)
        assert result.code == 1
        assert result.stderr.startswith("Traceback")
        assert "predictor.py" in result.stderr
        last = result.stderr.splitlines()[-1]
        assert last.startswith("paramgolf: cannot read the artifact nothing.bin")


def test_debug_is_no_option_of_a_recipe(cli: Cli) -> None:
    result = cli("run", "tiny", "--debug", "--help")
    assert result.code == 0
    assert "--debug" not in result.stdout


# Generation.


def test_generate_writes_prompt_and_continuation(cli: Cli, folder: Path) -> None:
    options = ["--prompt", "Return the", "--max-tokens", "90", "--seed", "3"]
    result = cli("generate", "model.bin", *options, cwd=folder)
    assert (result.code, result.stderr) == (0, "")
    predictor = paramgolf.load(folder / "model.bin", device="cpu")
    expected = "".join(predictor.generate("Return the", max_tokens=90, seed=3))
    assert expected
    assert result.stdout == f"Return the{expected}\n"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--temperature", "-1"], ["--temperature = -1.0", "0 or more"]),
        (["--top-p", "0"], ["--top-p = 0.0", "over 0 and at most 1"]),
    ],
)
def test_generate_with_impossible_options(
    cli: Cli, folder: Path, wrong: list[str], words: list[str]
) -> None:
    message = cli.error("generate", "model.bin", *wrong, cwd=folder, code=2)
    for word in words:
        assert word in message
