"""The batch size: enough images to keep a device busy, few enough for its memory."""

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.models.backbone import TIMM_ERRORS

FLOAT_BYTES = 4
WIDE = 128  # channels at half the image's size: where a network's own activations cannot be had

# Larger blocks than 32 MiB come from the kernel page by page and go back at once (glibc's M_MMAP_THRESHOLD): on a CPU
# that takes as long as the network does.
CPU_BYTES = 2**25
CPU_IMAGES = 256
OTHER_BYTES = 2**30  # of an accelerator that does not tell its free memory
SHARE_OF_FREE = 0.125  # for the largest activation; a few live at once
LARGE_IMAGES = 256 * 224 * 224  # pixels: more at a time do not make a GPU faster
GPU_IMAGES = 2048

_known: dict[Any, int] = {}


def default_batch_size(
    data_configs: Sequence[Mapping[str, Any]], modules: Sequence[nn.Module], device: torch.device
) -> int:
    """A power of two.

    Args:
        data_configs: of the networks; they see the same images one after the other.
        modules: those networks.
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
    """The largest output of any layer for one image of this size (C, H, W), in float32."""
    model: Any = next((part for part in module.modules() if hasattr(part, "forward_features")), module)
    key = (type(model), input_size, tuple(parameter.shape for parameter in model.parameters()))
    if key not in _known:
        # In a thread of its own: what counts this thread's operations (FLOPs, memory) is not to count these.
        with ThreadPoolExecutor(1) as thread:
            _known[key] = thread.submit(_largest_output, model, input_size).result()
    return _known[key]


@torch.no_grad()
def _largest_output(model: nn.Module, input_size: tuple[int, ...]) -> int:
    channels, height, width = input_size
    largest = channels * height * width

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel())

    memo: dict[int, Any] = {id(t): t.detach().to("meta") for t in (*model.parameters(), *model.buffers())}
    try:
        shapes = copy.deepcopy(model, memo).eval()  # takes no memory, computes nothing
        for part in shapes.modules():
            part.register_forward_hook(note)
        shapes(torch.zeros(1, *input_size, device="meta"))
    except TIMM_ERRORS:  # some architectures look at values
        largest = max(largest, WIDE * height * width // 4)
    return FLOAT_BYTES * largest


def _power_of_two(count: int) -> int:
    return 2 ** (max(1, count).bit_length() - 1)
