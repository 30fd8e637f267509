"""README and the pages of the site: their programs run, their command lines parse, their links lead somewhere."""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.methods import registry

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
DOCUMENTS = [README, *PAGES]
LINKING = [*DOCUMENTS, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "scripts" / "results").glob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
README_BYTES = 8000
QUICK = {  # under 3 s each
    *("guides/devices.md", "guides/gallery.md", "guides/heads.md", "guides/method.md", "guides/wishes.md"),
}
TRAINED = {"index.md", "guides/evaluate.md", "guides/train.md"}  # long enough for parts that fit
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]+)\)")


def name_of(path: Path) -> str:
    pages = ROOT / "docs" / "pages"
    return path.relative_to(pages if path.is_relative_to(pages) else ROOT).as_posix()


def blocks(path: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def with_programs() -> Iterator[object]:
    for path in DOCUMENTS:
        if blocks(path, "python"):
            name = name_of(path)
            marks = () if name in QUICK else (pytest.mark.slow, pytest.mark.timeout(1800))
            yield pytest.param(path, id=name, marks=marks)


@pytest.fixture
def readers_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub) -> Path:
    """An empty folder, and a Hub where the reader is logged in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.user("hf_readersecret", "alice", "bob", "you"))
    torch.manual_seed(0)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # what a page registers goes with it
    return tmp_path


@pytest.mark.parametrize("path", list(with_programs()))
def test_the_programs_of_a_page_run_from_first_to_last(path: Path, readers_place: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), names)
    if name_of(path) in TRAINED:
        assert names["matrix"].recombined_accuracy > 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_tutorials_run(path: Path, readers_place: Path) -> None:
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_programs_that_need_the_real_hub_are_programs(path: Path) -> None:
    for block in blocks(path, "py"):
        compile(block, str(path), "exec")
        for name in re.findall(r"\btc\.(\w+)", block):
            assert hasattr(tc, name), f"{name_of(path)} uses tc.{name}, which does not exist"


def command_lines(path: Path) -> Iterator[str]:
    """What stands behind a prompt in console blocks, continued lines joined, comments left out."""
    for block in CONSOLE.findall(path.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ timm-compat"):
                yield line.removeprefix("$ ").partition(" > ")[0]


def parses(line: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the command line is one: its options are read, the command itself is not run."""
    parsed: list[object] = []

    def set_defaults(self: argparse.ArgumentParser, **defaults: object) -> None:
        self._defaults.update(defaults, run=parsed.append)

    monkeypatch.setattr(argparse.ArgumentParser, "set_defaults", set_defaults)
    words = shlex.split(line, comments=True)[1:]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        main(words)
    return bool(parsed)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if any(command_lines(path))], ids=name_of)
def test_command_lines_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in command_lines(path):
        assert parses(line, monkeypatch), f"{name_of(path)}: {line}"


def test_a_command_line_that_does_not_exist_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parses("timm-compat split resnet18 --output DIR  # a comment", monkeypatch)
    assert not parses("timm-compat split resnet18 --out-put DIR", monkeypatch)
    assert not parses("timm-compat splice resnet18", monkeypatch)


def anchors(path: Path) -> set[str]:
    """Headings as MkDocs and GitHub turn them into anchors."""
    prose = FENCED.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6} +(.+?) *$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", LINKING, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(FENCED.sub("", path.read_text(encoding="utf-8"))):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), f"{name_of(path)} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors(target), f"{name_of(path)} links to {link}; its headings: {anchors(target)}"


def test_readme_is_short_and_starts_with_the_two_commands() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= README_BYTES
    first = CONSOLE.search(text)
    assert first is not None
    assert re.findall(r"^\$ (\S+)", first[1], re.MULTILINE) == ["scripts/demo", "scripts/test"]


def test_every_public_name_is_in_the_api_page() -> None:
    page = (ROOT / "docs" / "pages" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: timm_compat\.([\w.]+)$", page, re.MULTILINE))
    packages = {"data", "errors", "evaluation", "experiments", "gallery"}
    below = {f"{name}.{public}" for name in packages - {"errors"} for public in getattr(tc, name).__all__}
    errors = {f"errors.{name}" for name in dir(tc.errors) if name.endswith("Error")}
    assert shown == set(tc.__all__) - {"__version__"} - packages | below | errors
