"""How many images at a time: as many as keep a device busy, few enough for its memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

FLOAT_BYTES = 4
INNER = 4  # how much wider than a stage's output its layers are: inverted bottlenecks, MLPs of transformers
FIRST_STAGE = {"num_chs": 64, "reduction": 2}  # where timm does not know the stages

# Larger blocks than 32 MiB come from the kernel page by page and go back at once (glibc, M_MMAP_THRESHOLD): on a CPU
# that costs as much time as the network does.
CPU_BYTES = 2**26
CPU_IMAGES = 256
OTHER_BYTES = 2**30  # of an accelerator that does not tell its free memory
SHARE_OF_FREE = 0.25
LARGE_IMAGES = 256 * 224 * 224  # pixels: more at a time do not make a GPU faster
GPU_IMAGES = 2048


def default_batch_size(
    data_configs: Sequence[Mapping[str, Any]], modules: Sequence[nn.Module], device: torch.device
) -> int:
    """A power of two.

    Args:
        data_configs: of the networks; they see the same images one after the other.
        modules: their weights.
        device: where they run.
    """
    sizes = [tuple(config["input_size"]) for config in data_configs]
    image = max(activation_bytes(module, size) for module, size in zip(modules, sizes, strict=True))
    if device.type == "cpu":
        return _power_of_two(min(CPU_BYTES // image, CPU_IMAGES))
    room = OTHER_BYTES
    if device.type == "cuda":
        room = round(SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0])
    pixels = max(height * width for _, height, width in sizes)
    return _power_of_two(min(room // image, LARGE_IMAGES // pixels, GPU_IMAGES))


def activation_bytes(module: nn.Module, input_size: tuple[int, ...]) -> int:
    """About the largest activation of one image, from the stages of timm's ``feature_info``."""
    channels, height, width = input_size
    stages: list[Mapping[str, Any]] = []
    for part in module.modules():
        known = getattr(part, "feature_info", None)
        if isinstance(known, list) and known and all({"num_chs", "reduction"} <= set(stage) for stage in known):
            stages = known
            break
    found = [
        INNER * stage["num_chs"] * (height / stage["reduction"]) * (width / stage["reduction"])
        for stage in stages or [FIRST_STAGE]
    ]
    return round(FLOAT_BYTES * max(*found, channels * height * width))


def _power_of_two(count: int) -> int:
    return 2 ** (max(1, count).bit_length() - 1)
