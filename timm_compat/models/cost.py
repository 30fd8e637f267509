"""What a network costs: parameters, floating-point operations, milliseconds per image."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_compat.models.evaluating import evaluating
from timm_compat.models.run_options import home_of

WARM_UP, RUNS = 2, 10
MOST_SECONDS = 5.0  # after which fewer runs must do: a network may be slow, or the machine busy


@dataclass(frozen=True)
class Cost:
    """Of one network at batch 1.

    Attributes:
        parameters: number of weights.
        gflop: 1e9 floating-point operations per image, a multiplication and an addition counted as two.
        milliseconds: per image, median of up to 10 passes one after the other, without reading and preprocessing.
        input_size: (C, H, W) of the image.
        device: where the time was measured.
    """

    parameters: int
    gflop: float
    milliseconds: float
    input_size: tuple[int, int, int]
    device: str


@torch.no_grad()
def measure_cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Count and time a network that takes normalised images, on the device where it is.

    Args:
        model: images (B, C, H, W) to anything; its mode and weights are left alone.
        input_size: (C, H, W).
    """
    device = home_of(model)
    image = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0)).to(device)
    with evaluating(model):
        with FlopCounterMode(display=False) as counter:
            model(image)
        warm = [_timed(model, image) for _ in range(WARM_UP)]
        seconds = [_timed(model, image)]
        while len(seconds) < RUNS and sum(warm) + sum(seconds) < MOST_SECONDS:
            seconds.append(_timed(model, image))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() / 1e9, 1000 * median(seconds), input_size, str(device))


def _timed(model: nn.Module, image: torch.Tensor) -> float:
    start = time.perf_counter()
    model(image)
    if image.device.type != "cpu":
        torch.accelerator.synchronize(image.device)
    return time.perf_counter() - start
