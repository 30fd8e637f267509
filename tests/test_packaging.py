"""The package as users get it: from a wheel, an editable install and a bare checkout, the card templates are there."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "LICENSE", "README.md", "timm_compat", "hub_cards")
CARDS = sorted(path.name for path in (CHECKOUT / "hub_cards").glob("*.md"))

PROBE = """
import json
from timm_compat.storage import cards
templates = {f"{role}.md": cards.card_template(role) for role in cards.CARD_ROLES}
print(json.dumps({"file": cards.__file__, "templates": templates}))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources, so that no build writes into the checkout."""
    target = tmp_path / "copy"
    target.mkdir()
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)
    return target


@pytest.fixture
def wheel(copy: Path, tmp_path: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), cwd=copy)
    (path,) = (tmp_path / "dist").glob("*.whl")
    return path


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    """Run a command that must succeed, with ``path`` as its whole PYTHONPATH; its standard output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_cards(python: str, home: Path, elsewhere: Path, path: Path | None = None) -> None:
    """From a folder that holds no sources, the package is found in ``home`` and reads every template."""
    elsewhere.mkdir()
    answer = json.loads(run(python, "-c", PROBE, cwd=elsewhere, path=path))
    assert Path(answer["file"]).resolve() == (home / "timm_compat" / "storage" / "cards.py").resolve()
    assert sorted(answer["templates"]) == CARDS
    for name, text in answer["templates"].items():
        assert text == (CHECKOUT / "hub_cards" / name).read_text(encoding="utf-8")


def test_every_package_is_listed() -> None:
    setup = ConfigParser()
    setup.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    listed = setup["options"]["packages"].split()
    folders = {path.parent.relative_to(CHECKOUT) for path in (CHECKOUT / "timm_compat").rglob("*.py")}
    assert listed == sorted({".".join(folder.parts) for folder in folders} | {"timm_compat.hub_cards"})


@pytest.mark.slow
def test_bare_checkout(copy: Path, tmp_path: Path) -> None:
    check_cards(sys.executable, copy, tmp_path / "elsewhere", path=copy)


@pytest.mark.slow
def test_wheel(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    check_cards(sys.executable, target, tmp_path / "elsewhere", path=target)


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path, copy: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    code = {path.relative_to(copy).as_posix() for path in (copy / "timm_compat").rglob("*") if path.is_file()}
    cards = {f"timm_compat/hub_cards/{name}" for name in CARDS}
    assert {name for name in names if ".dist-info/" not in name} == code | cards
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_editable_install(copy: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    borrow_packages(python, tmp_path)
    options = ("--no-deps", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, "-e", str(copy), cwd=tmp_path)
    check_cards(python, copy, tmp_path / "elsewhere")


def borrow_packages(python: str, cwd: Path) -> None:
    """Lend this environment's packages to ``python`` by a .pth line; .pth files of the lender itself stay unread."""
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=cwd).strip()
    lender = Path(torch.__file__).parents[1]
    Path(site, "borrowed.pth").write_text(f"{lender}\n", encoding="utf-8")
