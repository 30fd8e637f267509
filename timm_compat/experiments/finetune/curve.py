"""Accuracy against what a training has cost so far."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Curve:
    """One training, measured at the beginning and after every epoch.

    Attributes:
        steps: of the optimiser, so far; the first is 0.
        seconds: wall time of the training so far, a frozen backbone's pass over the images included, measuring
            accuracy excluded.
        accuracy: in [0, 1], on the target's test images.
        setup_flops: before the first step.
        step_flops: of every step.
        peak_bytes: of tensors that live at once.
    """

    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]
    setup_flops: float = 0.0
    step_flops: float = 0.0
    peak_bytes: int = 0

    @property
    def flops(self) -> tuple[float, ...]:
        """Floating-point operations so far."""
        return tuple(self.setup_flops * (step > 0) + self.step_flops * step for step in self.steps)

    def reached(self, level: float) -> int | None:
        """Number of the first measurement of at least that accuracy; None if there is none."""
        return next((number for number, value in enumerate(self.accuracy) if value >= level), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Curve":
        """What ``to_dict`` gave."""
        found: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**found)
