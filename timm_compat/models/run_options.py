"""How a pass over images runs: device, batch size, precision, workers, progress. The same keywords everywhere."""

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from timm_compat.errors import ConfigError
from timm_compat.processes import current_process, process_device

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class RunKeywords(TypedDict, total=False):
    """The keywords of ``RunOptions``, for functions that take them."""

    device: str | torch.device | None
    batch_size: int | None
    amp: str | None
    workers: int
    progress: bool | None


@dataclass(frozen=True)
class RunOptions:
    """Settings of a pass over images.

    Attributes:
        device: such as "cuda", "cuda:1", "mps" or "cpu"; if None, where the networks are if that is not the CPU, else
            the best that torch finds.
        batch_size: images at a time; if None, chosen for device, image size and networks.
        amp: "bf16" or "fp16" for automatic mixed precision; float32 if None.
        workers: processes that decode image files while the networks compute.
        progress: whether to show a bar on standard error; if None, where that is a terminal.

    Raises:
        ConfigError: a number out of range, an unknown precision, or a device that is not there.
    """

    device: str | torch.device | None = None
    batch_size: int | None = None
    amp: str | None = None
    workers: int = 0
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("batch_size", self.batch_size, 1), ("workers", self.workers, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"{name}: expected an integer of at least {least}, got {value!r}")
        if self.amp is not None and self.amp not in PRECISIONS:
            raise ConfigError(f"amp: expected one of {', '.join(PRECISIONS)}, or none for float32, got {self.amp!r}")
        if self.device is not None:
            _existing(self.device)

    def device_for(self, modules: Iterable[nn.Module]) -> torch.device:
        """Where these networks run.

        Raises:
            ConfigError: it cannot compute in the precision ``amp``.
        """
        device = self._chosen(modules)
        if self.amp is not None:
            check_precision(self.amp, device)
        return device

    def _chosen(self, modules: Iterable[nn.Module]) -> torch.device:
        if self.device is not None:
            return _existing(self.device)
        homes = [home for module in modules if (home := home_of(module)).type != "cpu"]
        return homes[0] if homes else process_device() or best_device()

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows a bar."""
        wanted = sys.stderr.isatty() if self.progress is None else self.progress
        return wanted and current_process()[0] == 0


def home_of(module: nn.Module) -> torch.device:
    """The device of a module's weights; the CPU where it has none."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def best_device() -> torch.device:
    """An accelerator where torch finds one, else the CPU; the CPU under ``ACCELERATE_USE_CPU``."""
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def devices() -> tuple[str, ...]:
    """Those that are there: "cpu", and "cuda:0" and the like."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return ("cpu",)
    return ("cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())))


def check_precision(amp: str, device: torch.device) -> None:
    """Refuse a precision in which a device does not compute.

    Raises:
        ConfigError: the message says what to do.
    """
    refusal = ConfigError(
        f"amp: expected a precision that {device} computes in, got {amp!r}; choose "
        f"{' or '.join(other for other in PRECISIONS if other != amp)}, or leave it out for float32"
    )
    dtype = PRECISIONS[amp]
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise refusal
    try:
        # torch only warns where it does not know a precision, and goes on in float32.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")
            with torch.autocast(device.type, dtype):
                image, kernel = (torch.zeros(shape, device=device) for shape in ((2, 4, 8, 8), (8, 4, 3, 3)))
                F.linear(F.conv2d(image, kernel).flatten(1), torch.zeros(3, 288, device=device))
    except (RuntimeError, UserWarning) as error:
        raise refusal from error


def _existing(device: str | torch.device) -> torch.device:
    there = devices()
    refusal = ConfigError(f"device: expected one of {', '.join(there)}, got {str(device)!r}")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise refusal from error
    kinds = {name.partition(":")[0] for name in there}
    if found.type not in kinds or (found.index is not None and found.type != "cpu" and str(found) not in there):
        raise refusal
    return torch.device("cpu") if found.type == "cpu" else found
