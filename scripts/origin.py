"""Where a measurement comes from: commit, machine, versions, and the command without the folders of one machine."""

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from timm_compat.storage.files import library_versions

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"--cifar10": "ROOT", "--digits": "ROOT", "--output": "DIR", "--weights": "WEIGHTS", "--photos": "PHOTOS"}


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


def machine() -> dict[str, Any]:
    """Processor, cores, GPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(), "gpu": name}


def made(command_line: str, device: str) -> dict[str, Any]:
    """What is kept with a measurement.

    Args:
        command_line: see ``command``.
        device: "cpu" or "cuda".
    """
    return {
        "command": command_line,
        "commit": commit(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "device": device,
        "versions": {"python": platform.python_version(), **library_versions()},
        "date": datetime.date.today().isoformat(),
    }
