"""The benchmark script at its smallest: results are complete, kept, and not measured twice."""

import importlib
import json
from pathlib import Path
from types import ModuleType

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
    first = run(benchmark, monkeypatch, tmp_path, "inference", "passes", "scale", "gpu/test_vit")
    assert {table: len(cells) for table, cells in first.items() if cells} == {
        "inference": 2,
        "passes": 3,
        "scale": 1,
        "gpu": 1,
    }
    for cell in (cell for cells in first.values() for cell in cells.values()):
        assert cell.keys() >= NAMES
        assert cell["made"].keys() == MADE
        assert cell["made"]["machine"]["cores"] > 0
        assert all(value > 0 for value in cell["seconds"].values())
    low, median, high = first["inference"]["test_resnet-32-1"]["ratios"]["fused"]
    assert 0 < low <= median <= high
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
