"""Checkpoints: the whole state of a run, written at once or not at all; the newest sound one is read.

Random numbers need no place in it: orders, augmentation, self-supervised tasks and dropout are functions of the seed
and the step.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from timm_compat.errors import TrainingError
from timm_compat.storage.files import file_sha256, new_folder
from timm_compat.training.state import join_state, split_state

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
PREFIX = "step-"
STATE_FILE, TENSORS_FILE = "state.json", "state.safetensors"


class Checkpoints:
    """The checkpoints of one run, below its output folder.

    Args:
        output: the run's folder.
        keep: how many of the newest are kept.
    """

    def __init__(self, output: Path, keep: int) -> None:
        self.output, self.folder, self.keep = output, output / FOLDER, keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after a number of steps, then remove all but the newest ones.

        Raises:
            TrainingError: it could not be written; the earlier ones are still there.
        """
        path = self.folder / f"{PREFIX}{step:09d}"
        values, tensors = split_state(state)
        try:
            if path.exists():  # a damaged one, which the resumed run left out
                shutil.rmtree(path)
            with new_folder(path) as partial:
                save_file(tensors, partial / TENSORS_FILE)
                digest = file_sha256(partial / TENSORS_FILE)
                text = json.dumps({"sha256": digest, "state": values})
                (partial / STATE_FILE).write_text(text, encoding="utf-8")
                for file in partial.iterdir():
                    _flush(file)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"step {step}: expected to write a checkpoint to {self.folder}, got {error}; the last good one is "
                f"{self.newest_name()}: make room, then resume"
            ) from error
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)
        return path

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Number of steps and state of the newest checkpoint that is sound; None if there is none at all.

        Raises:
            TrainingError: there are checkpoints, and every one is damaged.
        """
        self._sweep()
        found = self._all()
        for path in reversed(found):
            try:
                return int(path.name.removeprefix(PREFIX)), _read(path)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                logger.warning("%s is damaged (%s); the checkpoint before it is used", path, error)
        if found:
            raise TrainingError(
                f"expected a sound checkpoint in {self.folder}, got {len(found)} damaged ones; start again in a new "
                "output folder"
            )
        return None

    def newest_name(self) -> str:
        """Path of the newest checkpoint, for messages."""
        found = self._all()
        return str(found[-1]) if found else "none"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}*")) if self.folder.is_dir() else []

    def _sweep(self) -> None:
        # What a run that was killed in the middle of writing left behind.
        for partial in self.folder.glob(f".{PREFIX}*") if self.folder.is_dir() else ():
            shutil.rmtree(partial, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    read = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    found = file_sha256(path / TENSORS_FILE)
    if read["sha256"] != found:
        raise ValueError(f"{TENSORS_FILE}: expected SHA-256 {read['sha256']}, got {found}")
    state: dict[str, Any] = join_state(read["state"], load_file(path / TENSORS_FILE))
    return state


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
