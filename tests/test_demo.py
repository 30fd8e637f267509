"""The demonstration that trains and the command line, as a user runs them: in processes of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import timm_compat as tc
from timm_compat.cli import main

KEYS = {"native", "recombined", "independent", "joined", "ceiling", "chance"}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "timm_compat", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1200, check=False)


def printed_usage(report: str) -> str:
    return report[report.index("import timm_compat as tc") :]


class TestDemo:
    @pytest.mark.slow
    def test_one_epoch_gives_everything_that_a_full_run_gives(self, tmp_path) -> None:
        done = run("demo", "--epochs", "1", "--img-size", "16", "--json", "--output", "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert all(0 <= result[key] <= 1 for key in KEYS)
        assert result["chance"] == pytest.approx(0.1)
        assert result["seconds"] > 0
        assert result["backbones"] == ["test_resnet", "test_efficientnet"]
        assert result["pretrained"] is False
        assert (tmp_path / "out" / "recombination.png").read_bytes().startswith(b"\x89PNG")
        assert {path.name for path in (tmp_path / "out" / "compatible").iterdir()} == {
            "space", "extractor-a", "extractor-b", "head-a", "head-b",
        }  # fmt: skip
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.slow
    def test_report_ends_with_lines_that_run(self, tmp_path) -> None:
        first = run("demo", "--epochs", "1", "--img-size", "16", cwd=tmp_path)
        assert first.returncode == 0, first.stderr
        code = printed_usage(first.stdout)
        assert len(code.strip().splitlines()) == 5
        done = subprocess.run(
            [sys.executable, "-c", code + "\nprint(tuple(logits.shape))"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout.strip() == "(449, 10)", done.stderr
        assert (tmp_path / "timm-compat-demo").is_dir()

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    def test_full_run_is_compatible_where_it_says_so(self, tmp_path) -> None:
        results = []
        for name in ("one", "two"):
            done = run("demo", "--json", "--output", name, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            results.append(json.loads(done.stdout))
            assert "no pretrained weights, so small networks are trained instead: " in done.stderr  # offline
        result = results[0]
        assert result["pretrained"] is False
        assert result["native"] > 0.93
        assert result["recombined"] > result["native"] - 0.03
        assert result["independent"] < 0.4
        assert result["joined"] > result["ceiling"] - 0.03
        assert {key: results[1][key] for key in KEYS} == {key: result[key] for key in KEYS}


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--backbones", "test_resnt,test_vit"], r"did you mean test_resnet"),
            (["--backbones", "test_resnet"], r"expected two names, got 1"),
            (["--epochs", "0"], r"epochs: expected an integer of at least 1"),
            (["--img-size", "-4"], r"img_size"),
            (["--threads", "0"], r"threads: expected an integer of at least 1, got 0"),
            (["--output", "taken"], r"expected a new or empty output folder"),
        ],
    )
    def test_one_line_and_nothing_left(self, arguments, message, tmp_path, monkeypatch, capsys) -> None:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "mine.txt").write_text("keep")
        monkeypatch.chdir(tmp_path)
        assert main(["demo", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.search(message, printed.err)
        assert printed.err.splitlines()[-1].startswith("timm-compat: error: ")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.txt", "taken"]

    @pytest.mark.slow
    def test_the_shell_sees_the_exit_code_and_no_traceback(self, tmp_path) -> None:
        done = run("demo", "--backbones", "nonsense,test_vit", cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("arguments", [["nonsense"], []])
    def test_unknown_command_and_no_command(self, arguments, capsys) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "usage: timm-compat" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("line", "meant"),
        [
            ("probe folder --data images --output new --test test", "--test-split"),  # not the only --test there may be
            ("push folder me/a --mess=hello", "--message"),
            ("train recipe.yaml --out new", "--output"),
            ("gallery upgrade photos --to new --samp 10", "--sample"),
        ],
    )
    def test_an_option_cut_short_is_refused(self, line, meant, capsys) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(line.split())
        printed = capsys.readouterr().err
        assert f"usage: timm-compat {line.split()[0]}" in printed
        assert f"unrecognized arguments: {line[line.rindex('--') :]}; write {meant} in full\n" in printed

    def test_what_no_option_begins_with_is_refused(self, capsys) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["info", "folder", "--jso", "--nonsense", "more"])
        assert "unrecognized arguments: --jso --nonsense more; write --json in full\n" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="2"):
            main(["info", "folder", "--", "more"])
        assert capsys.readouterr().err.endswith("unrecognized arguments: more\n")

    def test_version(self, capsys) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out == f"timm-compat {tc.__version__}\n"
