"""What a run measured: means of the loss's parts over an epoch, and one JSON line per epoch."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timm_compat.errors import TrainingError
from timm_compat.storage.files import replace_text

HISTORY_FILE = "history.jsonl"
Record = dict[str, float]


class EpochMeans:
    """Mean of every part of the loss over an epoch; notices numbers that are not finite one step later.

    A number is only read when the next step is under way, so that an accelerator never waits for it.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None
        self.steps = 0
        self._last: tuple[int, Tensor] | None = None

    def add(self, step: int, losses: Mapping[str, Tensor], last_good: Callable[[], str]) -> None:
        """Count a step's losses; ``last_good`` names the last good checkpoint, when one is needed.

        Raises:
            TrainingError: a number of the step before was not finite.
        """
        self.settle(last_good)
        self.names = tuple(losses)
        values = torch.stack([value.detach().float() for value in losses.values()])
        self.sums = values if self.sums is None else self.sums + values
        self.steps += 1
        self._last = (step, values)

    def settle(self, last_good: Callable[[], str]) -> None:
        """Look at the last step's numbers.

        Raises:
            TrainingError: one is not finite; names the step, the member and the last good checkpoint.
        """
        if self._last is None:
            return
        step, values = self._last
        self._last = None
        for name, number in zip(self.names, values.tolist(), strict=True):
            if name != "loss" and not math.isfinite(number):
                member, _, part = name.partition("/")
                raise TrainingError(
                    f"step {step + 1}: expected a finite loss, got {part} = {number} of member {member!r}; last good "
                    f"checkpoint: {last_good()}; lower lr, set clip_grad, or use mixed_precision='no'"
                )

    def averages(self) -> Tensor:
        """The means in the order of ``names``."""
        assert self.sums is not None
        return self.sums / self.steps

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"names": list(self.names), "sums": self.sums, "steps": self.steps}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "EpochMeans":
        """The means as they were."""
        means = cls()
        means.names, means.steps = tuple(state["names"]), state["steps"]
        means.sums = None if state["sums"] is None else state["sums"].to(device)
        return means


def write_history(output: Path, records: list[Record]) -> None:
    """Replace the file of JSON lines, in one step."""
    replace_text(output / HISTORY_FILE, "".join(json.dumps(record) + "\n" for record in records))
