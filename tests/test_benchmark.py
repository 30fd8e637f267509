"""The benchmark script at its smallest: results are complete, kept, and not measured twice."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NAMES = {"name", "row", "seconds", "settings", "made"}
MADE = {"command", "commit", "machine", "threads", "device", "versions", "date"}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("benchmark")


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, output: Path, *tables: str) -> dict:
    arguments = ["--output", str(output), "--device", "cpu", "--small", "--repeats", "2"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *tables, *arguments])
    script.main()
    return json.loads((output / "speed.json").read_text())


@pytest.mark.slow
def test_results_are_complete_and_kept(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = ("inference", "passes", "joining", "training/adapter", "scale", "gpu/test_vit")
    first = run(benchmark, monkeypatch, tmp_path, *tables)
    assert {table: len(cells) for table, cells in first.items() if cells} == {
        "inference": 2,
        "passes": 3,
        "joining": 10,
        "training": 1,
        "scale": 1,
        "gpu": 1,
    }
    for cell in (cell for cells in first.values() for cell in cells.values()):
        assert cell.keys() >= NAMES
        assert cell["made"].keys() == MADE
        assert cell["made"]["machine"]["cores"] > 0
        assert all(value > 0 for value in cell["seconds"].values())
    for ratio in (
        first["inference"]["test_resnet-32-1"]["ratios"]["fused"],
        *first["training"]["adapter"]["ratios"].values(),
    ):
        low, median, high = ratio
        assert 0 < low <= median <= high
    assert len(first["training"]["adapter"]["processes"]) == 3
    text = (tmp_path / "speed.md").read_text()
    assert "## Inference\n" in text
    assert "(CPU, reduced: no GPU was at hand, its cells are open)" in text
    assert (tmp_path / "speed.png").is_file()

    lost = tmp_path / "cells" / "inference" / "test_vit-32-4.json"
    lost.unlink()
    capsys.readouterr()
    second = run(benchmark, monkeypatch, tmp_path, "inference")
    assert capsys.readouterr().err.splitlines() == ["inference: test_vit-32-4"]
    assert second["inference"]["test_resnet-32-1"] == first["inference"]["test_resnet-32-1"]
    assert second["scale"] == first["scale"]


def test_tables_that_are_refused(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(benchmark, monkeypatch, tmp_path, "inferences")
    assert "expected tables among inference, passes, loading" in capsys.readouterr().err


def test_steps_are_timed_in_turns_with_the_ends_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    steps = importlib.import_module("benchmarks.steps")
    clock = 0.0

    def passes(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    def fit(callback: Any) -> None:
        callback.on_train_begin()
        for step in range(1, 9):
            passes(100 if step < 5 else 3)  # the first epochs warm up
            callback.on_step_end(step)
            passes(4 if step % 2 == 0 else 0)  # the end of an epoch belongs to the next step

    monkeypatch.setattr(steps, "now", lambda device: clock)
    assert steps.pairs_of(fit, lambda: passes(2), "cpu", together=2) == [(5, 2), (5, 2)]


def test_training_rows_tell_what_single_processes_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    training = importlib.import_module("benchmarks.training")
    cell = {"name": "joint", "row": ["resnet18", 64, 32], "seconds": {"ours": 1.5}, "steps": 1, "against": "by hand"}
    cell["ratios"] = {"ours": [0.99, 1.0, 1.02]}
    several = training.row({**cell, "processes": [1.01, 0.98, 1.03]})
    assert several == ["joint", "resnet18", 64, 32, [0.99, 1.0, 1.02], "0.98 to 1.03", 1500.0, "by hand"]
    assert training.row(cell)[5] == "one"


def test_page_tells_which_rows_are_of_which_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    page, passes = importlib.import_module("benchmarks.page"), importlib.import_module("benchmarks.passes")

    def cell(day: str, commit: str) -> dict[str, Any]:
        machine, versions = {"cpu": "a CPU", "cores": 2, "gpu": None}, {"timm_compat": "0.2.0", "torch": "2.14.1"}
        made = {"machine": machine, "versions": versions, "threads": 1, "device": "cpu", "date": day, "commit": commit}
        row = ["pass", "resnet18", 224, 16, "float32", "20"]
        return {"row": row, "ratio": "ours", "ratios": {"ours": [0.9, 1.0, 1.1]}, "repeats": 5, "made": made}

    cells = {"a": cell("2026-11-28", "1234567"), "b": cell("2026-11-25", "abcdef0"), "c": cell("2026-11-28", "89abcde")}
    told = "; b: 2026-11-25, timm_compat 0.2.0, commit abcdef0; a, c: 2026-11-28, timm_compat 0.2.0, commit 1234567 or"
    assert told in page.page({"passes": passes}, {"passes": cells})
    del cells["b"]
    assert "1 thread(s); torch 2.14.1; 2026-11-28, timm_compat" in page.page({"passes": passes}, {"passes": cells})


def test_extrapolated_costs_follow_the_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    scale = importlib.import_module("benchmarks.scale")
    measured = [
        {
            "row": [n],
            "seconds": {"ours": 2.0 * n, "trained once": 2.0 * n, "stitching": n**2 + n, "retraining": 2.0 * n**2},
        }
        for n in (2, 3, 4)
    ]
    title, ours, stitching, retraining, factor = scale.rows(measured)[-1]
    assert "extrapolated" in title
    assert [ours, stitching, retraining] == pytest.approx([60, 930, 1800], rel=1e-3)
    assert factor == "30.0"
