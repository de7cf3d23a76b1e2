"""Seeds and grids: no run is left out silently, and none of another configuration is used."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import write_json
from paramgolf.study.ablate import SEED_STD, run_grid
from paramgolf.study.cells import parse_cells, parse_grid
from paramgolf.study.seeds import Statistic, read_seeds, run_seeds
from tests.written_runs import BYTES_D, NATS_D, TINY, write_run

SILENT = Reporter()


@pytest.mark.parametrize("seed", range(5))
def test_a_statistic_agrees_with_numpy(seed: int) -> None:
    values = np.random.default_rng(seed).normal(1.8, 0.1, 6)
    statistic = Statistic({10 + number: float(value) for number, value in enumerate(values)})
    said = statistic.to_json()
    assert said["mean"] == pytest.approx(values.mean())
    assert said["std"] == pytest.approx(values.std(ddof=1))
    assert (said["min"], said["max"]) == (values.min(), values.max())
    assert statistic.worst_seed == 10 + int(values.argmax())


def test_one_seed_has_no_standard_deviation() -> None:
    assert Statistic({3: 1.5}).std is None


# Folders of seeds. All runs in them are finished, so nothing is trained here.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, scale in ((3, 1.0), (1, 1.1), (20, 1.02)):
        write_run(tmp_path / "all" / f"seed-{seed}", seed, NATS_D * scale)
    return tmp_path / "all"


def test_finished_runs_are_used_and_others_in_the_folder_shown(folder: Path) -> None:
    found = run_seeds("tiny", TINY, [20, 3], folder, SILENT)
    assert [run.seed for run in found.runs] == [1, 3, 20]
    assert found.coverage() == "3 of 3 seeds"
    said = json.loads((folder / "seeds.json").read_text())
    assert said["recipe"] == "tiny"
    assert "seed" not in said["config"]
    assert said["config"]["train.max_steps"] == TINY.train.max_steps
    row = said["statistics"]["bpb sliding"]
    expected = NATS_D.sum() / np.log(2) / BYTES_D.sum() * np.array([1.1, 1.0, 1.02])
    assert list(row["by_seed"]) == ["1", "3", "20"]
    assert list(row["by_seed"].values()) == pytest.approx(expected)
    assert row["worst_seed"] == 1
    assert row["labels"] == ["held-out"]
    assert said["statistics"]["bytes"]["by_seed"] == {"1": 1005, "3": 1007, "20": 1024}
    assert said["statistics"]["seconds, training"]["mean"] == pytest.approx(11 + 24 / 3)
    assert (said["over"], said["left_out"]) == ([1, 3, 20], [])


def test_different_labels_are_all_shown(folder: Path) -> None:
    write_run(folder / "seed-4", 4, label="in-sample")
    found = run_seeds("tiny", TINY, [3], folder, SILENT)
    assert found.stages()["sliding"].labels == ("held-out", "in-sample")


def test_a_run_without_results_counts_as_not_finished(folder: Path) -> None:
    run_seeds("tiny", TINY, [3], folder, SILENT)
    (folder / "seed-1" / "results.json").unlink()
    found = read_seeds(folder)
    assert found.coverage() == "2 of 3 seeds; left out: 1 (not finished)"
    assert set(found.stages()["sliding"].by_seed) == {3, 20}


def test_runs_of_different_texts_have_no_mean(folder: Path) -> None:
    write_run(folder / "seed-4", 4, text="another")
    with pytest.raises(UserError, match=r"text_sha256 is .*seed-1 and .*seed-4"):
        run_seeds("tiny", TINY, [3], folder, SILENT)


def test_forms_of_a_text_have_no_mean(folder: Path) -> None:
    write_run(folder / "seed-4", 4, restores="nfkc, extra spaces removed")
    words = r"restored as 'original' in .*seed-1 and 'nfkc, extra spaces removed' in .*seed-4"
    with pytest.raises(UserError, match=words):
        run_seeds("tiny", TINY, [3], folder, SILENT)


def test_seeds_stay_requested_once_they_were(folder: Path) -> None:
    """They are written with the time before the first runs, and a deleted run is missing."""
    run_seeds("tiny", TINY, [20, 3], folder, SILENT)
    before = json.loads((folder / "seeds.json").read_text())["requested"]
    assert [entry["seed"] for entry in before] == [3, 20]
    shutil.rmtree(folder / "seed-20")
    found = run_seeds("tiny", TINY, [1], folder, SILENT)
    said = json.loads((folder / "seeds.json").read_text())
    assert [entry["seed"] for entry in said["requested"]] == [1, 3, 20]
    assert said["requested"][1:] == before
    assert found.coverage() == "2 of 3 seeds; left out: 20 (missing)"
    assert [run.reason for run in found.left_out] == ["missing: was requested"]
    assert found.requested == {seed: folder / f"seed-{seed}" for seed in (1, 3, 20)}
    assert read_seeds(folder / "seed-3").requested == found.requested


def test_runs_remember_the_seeds_requested_with_them(folder: Path) -> None:
    """Deleting seeds.json and a run does not help."""
    for seed in (1, 3):
        path = folder / f"seed-{seed}" / "environment.json"
        write_json(path, {**json.loads(path.read_text()), "requested_seeds": [1, 3, 7]})
    assert set(read_seeds(folder / "seed-3").requested) == {1, 3, 7}
    found = run_seeds("tiny", TINY, [1], folder, SILENT)
    assert found.coverage() == "3 of 4 seeds; left out: 7 (missing)"


def test_the_seeds_are_written_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def start(*given: Any, requested_seeds: list[int], **_: Any) -> None:
        said = json.loads((tmp_path / "out" / "seeds.json").read_text())
        seen.append([entry["seed"] for entry in said["requested"]])
        assert requested_seeds == seen[-1]
        raise UserError("it diverged")

    monkeypatch.setattr("paramgolf.study.runs.start", start)
    run_seeds("tiny", TINY, [5, 2], tmp_path / "out", SILENT)
    assert seen == [[2, 5], [2, 5]]


def test_another_configuration_is_refused_by_its_key(folder: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, max_steps=7))
    before = sorted(folder.rglob("*"))
    for seeds in ([3], [99]):
        with pytest.raises(UserError, match=r"train\.max_steps = 600, not 7"):
            run_seeds("tiny", other, seeds, folder, SILENT)
    assert sorted(folder.rglob("*")) == before
    (folder / "seed-3").rename(folder / "seed-5")
    with pytest.raises(UserError, match="seed-5 contains a run with seed = 3, not 5"):
        run_seeds("tiny", TINY, [1], folder, SILENT)


def test_invalid_seeds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seeds, words in (([], "at least one seed"), ([1, 2, 1], "seed 1 is named twice")):
        with pytest.raises(ConfigError, match=words):
            run_seeds("tiny", TINY, seeds, folder, SILENT)
    with pytest.raises(ConfigError, match="seed = -1"):
        run_seeds("tiny", TINY, [-1], folder, SILENT)
    ranks = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    for name in ranks:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="in one process"):
        run_seeds("tiny", TINY, [1], folder, SILENT)


# Grids.


def values_of(vary: list[str], config: RunConfig = TINY) -> list[dict[str, object]]:
    return [cell.values for cell in parse_grid(config, vary)]


def test_a_grid_has_every_combination_with_typed_values() -> None:
    grid = parse_grid(TINY, ["train.matrix-lr=2e-2,0.04", "--model.num_layers=6, 8"])
    assert [cell.values for cell in grid] == [
        {"train.matrix_lr": lr, "model.num_layers": layers}
        for lr in (0.02, 0.04)
        for layers in (6, 8)
    ]
    for values, config, _ in grid:
        assert config.train.matrix_lr == values["train.matrix_lr"]
        assert config.model.num_layers == values["model.num_layers"]
        train = dataclasses.replace(config.train, matrix_lr=TINY.train.matrix_lr)
        model = dataclasses.replace(config.model, num_layers=TINY.model.num_layers)
        assert dataclasses.replace(config, train=train, model=model) == TINY


def test_values_of_other_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert values_of(["pack.fill-budget=True,false"]) == [
        {"pack.fill_budget": True}, {"pack.fill_budget": False},
    ]  # fmt: skip
    assert values_of(["adapt.text=none,adapt"]) == [{"adapt.text": "none"}, {"adapt.text": "adapt"}]
    assert values_of(["train.matrix_lr=1"]) == [{"train.matrix_lr": 1.0}]
    monkeypatch.chdir(tmp_path)
    assert values_of(["data.source=texts"]) == [{"data.source": str(tmp_path / "texts")}]


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ([], "name what to vary"),
        (["train.matrix_lr"], "expected KEY=A,B"),
        (["=3"], "expected KEY=A,B"),
        (["train.matrix_lr=0.02,,1"], "expected KEY=A,B"),
        (["train.matrx_lr=1"], "did you mean train.matrix_lr"),
        (["train=1"], "no key 'train'"),
        (["seed=1,2"], "--seeds"),
        (
            ["train.max_steps=1.5"],
            "invalid train.max_steps = '1.5': expected type int",
        ),
        (["pack.fill_budget=yes"], "pack.fill_budget = 'yes'"),
        (["adapt.text=scord"], "adapt.text = 'scord'"),
        (["train.matrix_lr=0.02,-1"], "train.matrix_lr = -1.0"),
        (["model.num_heads=4,9"], "a multiple of model.num_heads = 9"),
        (["train.matrix_lr=0.02,2e-2"], "names train.matrix_lr=0.02 twice"),
        (["train.matrix_lr=1", "train.matrix-lr=2"], "is given twice"),
    ],
)
def test_an_invalid_grid_is_refused(vary: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_grid(TINY, vary)


def written_grid(tmp_path: Path, vary: list[str], seeds: tuple[int, ...]) -> Path:
    """Write a grid whose runs are all finished; later cells score worse."""
    for number, (values, config, folder) in enumerate(parse_grid(TINY, vary)):
        assert folder == ",".join(f"{key}={value}" for key, value in values.items())
        cell = tmp_path / "grid" / folder
        for seed in seeds:
            scale = 1 + 0.1 * number + 0.01 * seed
            write_run(cell / f"seed-{seed}", seed, NATS_D * scale, config=config)
    return tmp_path / "grid"


def test_a_grid_is_summarised_as_json_and_plot(tmp_path: Path) -> None:
    vary = ["train.matrix_lr=0.01,0.02,0.4", "model.num_layers=6,8"]
    out = written_grid(tmp_path, vary, (1, 2, 3))
    found = run_grid("tiny", parse_grid(TINY, vary), [1, 2], out, SILENT)
    assert not found.failed
    said = json.loads((out / "ablation.json").read_text())
    assert said["texts"] == 1
    assert [cell["values"]["train.matrix_lr"] for cell in said["cells"]] == [
        0.01, 0.01, 0.02, 0.02, 0.4, 0.4,
    ]  # fmt: skip
    one = NATS_D.sum() / np.log(2) / BYTES_D.sum()
    for number, cell in enumerate(said["cells"]):
        assert cell["stage"] == "sliding"
        assert cell["bpb"]["mean"] == pytest.approx(one * (1.02 + 0.1 * number))
        assert cell["bpb"]["std"] == pytest.approx(one * 0.01)
    root = ElementTree.parse(out / "ablation.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for text in ("train.matrix_lr", "BPB, sliding (held-out)", "0.01", "0.4",
                 "model.num_layers = 6", "model.num_layers = 8",
                 "bands: plus and minus one standard deviation over the seeds"):  # fmt: skip
        assert text in texts


def test_a_plot_of_one_seed_shows_what_a_seed_is_worth(tmp_path: Path) -> None:
    """Two cells that differ by much less must not look like a slope."""
    vary = ["train.matrix_lr=0.01,0.02"]
    grid, out = parse_grid(TINY, vary), tmp_path / "grid"
    for number, (_, config, _) in enumerate(grid):
        cell = out / f"train.matrix_lr={config.train.matrix_lr}"
        write_run(cell / "seed-1", 1, NATS_D * (1 + 1e-4 * number), config=config)
    run_grid("tiny", grid, [1], out, SILENT)
    root = ElementTree.parse(out / "ablation.svg").getroot()
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "one seed: differences of about 0.02 BPB (grey) are noise" in texts
    numbers = [float(text) for text in texts if re.fullmatch(r"2\.\d+", text)]
    assert max(numbers) - min(numbers) >= 2 * SEED_STD


def test_values_that_are_words_label_the_axis(tmp_path: Path) -> None:
    out = written_grid(tmp_path, ["adapt.text=none,adapt"], (1,))
    run_grid("tiny", parse_grid(TINY, ["adapt.text=none,adapt"]), [1], out, SILENT)
    assert re.search(">none<.*>adapt<", (out / "ablation.svg").read_text(), re.DOTALL)


def test_a_cell_scored_on_another_text_is_noticed(tmp_path: Path) -> None:
    vary = ["train.matrix_lr=0.01,0.02"]
    out = written_grid(tmp_path, vary, (1,))
    grid = parse_grid(TINY, vary)
    cell = out / "train.matrix_lr=0.02"
    shutil.rmtree(cell)
    write_run(cell / "seed-1", 1, text="another", config=grid[1][1])
    found = run_grid("tiny", grid, [1], out, SILENT)
    assert found.num_texts == 2
    assert not (out / "ablation.svg").exists()  # nothing is ranked across texts
    cells = json.loads((out / "ablation.json").read_text())["cells"]
    assert [entry["text_sha256"] for entry in cells] == [c.text_sha256 for c in found.cells]
    assert cells[0]["text_sha256"] != cells[1]["text_sha256"]


def test_a_folder_with_another_configuration_is_refused(tmp_path: Path) -> None:
    vary = ["train.matrix_lr=0.01,0.02"]
    out = written_grid(tmp_path, vary, (1,))
    other = dataclasses.replace(TINY, pack=dataclasses.replace(TINY.pack, damping=0.5))
    with pytest.raises(UserError, match=r"pack\.damping = 0\.01, not 0\.5"):
        run_grid("tiny", parse_grid(other, vary), [1], out, SILENT)


# Lists of cells.


def test_cells_are_named_one_by_one() -> None:
    cells = parse_cells(
        TINY, [["train.matrix-lr=0.02", "--model.num_layers=8"], [], ["train.ema_share=0.9"]]
    )
    train, model = TINY.train, TINY.model
    expected = [
        dataclasses.replace(
            TINY,
            train=dataclasses.replace(train, matrix_lr=0.02),
            model=dataclasses.replace(model, num_layers=8),
        ),
        TINY,
        dataclasses.replace(TINY, train=dataclasses.replace(train, ema_share=0.9)),
    ]
    assert [cell.config for cell in cells] == expected
    # Every row has a value in every column; a folder is named by what its cell changes.
    assert [list(cell.values.values()) for cell in cells] == [
        [8, 0.02, train.ema_share],
        [model.num_layers, train.matrix_lr, train.ema_share],
        [model.num_layers, train.matrix_lr, 0.9],
    ]
    assert [cell.folder for cell in cells] == [
        "model.num_layers=8,train.matrix_lr=0.02", "unchanged", "train.ema_share=0.9",
    ]  # fmt: skip
    again = parse_cells(TINY, [["--model.num-layers=8", "train.matrix_lr=2e-2"]])
    assert again[0].folder == cells[0].folder


def test_a_folder_of_many_changes_has_a_name_that_file_systems_allow() -> None:
    names = [f"{name}_{what}" for name in ("embedding", "vector", "matrix")
             for what in ("lr", "weight_decay")]  # fmt: skip
    keys = [f"train.{name}=0.0{n}" for n in (1, 2) for name in (*names, "ema_share", "momentum")]
    half = len(keys) // 2
    one, other = parse_cells(TINY, [keys[:half], keys[half:]])
    assert one.folder != other.folder
    assert max(len(one.folder), len(other.folder)) < 255


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([["train.matrix_lr"]], "expected KEY=VALUE"),
        ([["train.matrx_lr=1"]], "did you mean train.matrix_lr"),
        ([["train.matrix_lr=0.02,0.04"]], "--vary spans a grid"),
        ([["seed=3"]], "--seeds"),
        ([["train.matrix_lr=-1"]], "train.matrix_lr = -1.0"),
        ([["train.matrix_lr=0.02"], ["train.matrix_lr=2e-2"]], "--cell names train.matrix_lr=0.02"),
        ([[], [f"train.max_steps={TINY.train.max_steps}"]], "twice"),
        ([["train.matrix_lr=1", "train.matrix-lr=2"]], "is given twice"),
    ],
)
def test_an_invalid_cell_is_refused(cells: list[list[str]], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_cells(TINY, cells)


def test_a_list_of_cells_is_a_table_without_a_plot(tmp_path: Path) -> None:
    cells = parse_cells(TINY, [["train.matrix_lr=0.01"], ["model.num_layers=8"], []])
    for number, cell in enumerate(cells[:2]):
        write_run(tmp_path / cell.folder / "seed-1", 1, NATS_D * (1 + number), config=cell.config)
    found = run_grid("tiny", cells[:2], [1], tmp_path, SILENT)
    assert not found.is_plotted
    assert not (tmp_path / "ablation.svg").exists()
    said = json.loads((tmp_path / "ablation.json").read_text())
    assert [cell["folder"] for cell in said["cells"]] == [cell.folder for cell in cells[:2]]
    assert said["cells"][1]["bpb"]["mean"] == pytest.approx(2 * said["cells"][0]["bpb"]["mean"])


def test_the_table_is_written_after_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a later cell that an earlier command has finished."""
    cells = parse_cells(TINY, [["train.matrix_lr=0.01"], ["train.matrix_lr=0.03"], []])
    write_run(tmp_path / "unchanged" / "seed-1", 1)

    def start(recipe: str, config: RunConfig, path: Path, *_: Any, **__: Any) -> None:
        if config.train.matrix_lr == 0.03:
            raise KeyboardInterrupt
        write_run(path, 1, config=config)

    monkeypatch.setattr("paramgolf.study.runs.start", start)
    with pytest.raises(UserError, match="the same command resumes the runs"):
        run_grid("tiny", cells, [1], tmp_path, SILENT)
    said = json.loads((tmp_path / "ablation.json").read_text())["cells"]
    assert [cell["bpb"] is not None for cell in said] == [True, False, True]
    assert [cell["left_out"] for cell in said] == [
        [], [{"seed": 1, "state": "missing", "failure": ""}], [],
    ]  # fmt: skip
