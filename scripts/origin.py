"""Where a measurement comes from: the commit, and the command without the places of one machine."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"--cifar10": "ROOT", "--digits": "ROOT", "--photos": "ROOT", "--weights": "DIR", "--output": "DIR"}


def commit() -> str:
    """Of this checkout; "+" where it was changed, "unknown" where it is none."""
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def command(script: str, words: Sequence[str]) -> str:
    """The command line, with a word for every folder.

    Args:
        script: its name below scripts/.
        words: of the command line.
    """
    shown = [PLACES.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return " ".join([f"scripts/{script}", *shown])
