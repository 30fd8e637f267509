"""Checkpoints: the whole state of a run, written at once or not at all; the newest sound one is read.

State is nested: dicts and lists of numbers, strings and tensors. It is kept as JSON plus named tensors, without pickle.
Random numbers need no place in it: orders, augmentation, self-supervised tasks and dropout are functions of the seed
and the step.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from timm_compat.errors import TrainingError
from timm_compat.storage.files import file_sha256, new_folder

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
PREFIX = "step-"
STATE_FILE, TENSORS_FILE = "state.json", "state.safetensors"
TENSOR, KEYS = "tensor", "keys"


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
        values, tensors = _split_state(state)
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


def clone_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's state as copies on the same device."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _read(path: Path) -> dict[str, Any]:
    read = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    found = file_sha256(path / TENSORS_FILE)
    if read["sha256"] != found:
        raise ValueError(f"{TENSORS_FILE}: expected SHA-256 {read['sha256']}, got {found}")
    state: dict[str, Any] = _join_state(read["state"], load_file(path / TENSORS_FILE))
    return state


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _split_state(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """JSON values with a place for every tensor, and the tensors by the name of their place.

    Raises:
        TypeError: something that is neither a container, a plain value nor a tensor.
    """
    tensors: dict[str, Tensor] = {}
    return _split(state, tensors), tensors


def _join_state(values: Any, tensors: dict[str, Tensor]) -> Any:
    """What ``_split_state`` took apart."""
    if isinstance(values, list):
        return [_join_state(value, tensors) for value in values]
    if isinstance(values, dict):
        if TENSOR in values:
            return tensors[values[TENSOR]]
        return {_key(key): _join_state(value, tensors) for key, value in values[KEYS]}
    return values


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: name}
    if isinstance(value, dict):
        # Pairs, because JSON turns keys that are numbers (an optimiser's) into strings.
        return {KEYS: [[_tag(key), _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_split(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"expected plain values and tensors, got {type(value).__name__}")


def _tag(key: Any) -> list[Any]:
    return [type(key).__name__, key]


def _key(tagged: list[Any]) -> Any:
    kind, key = tagged
    return int(key) if kind == "int" else key
