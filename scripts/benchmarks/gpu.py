"""Joint training against timm's bare training step: images a second, use of the hardware, memory, floor of a step."""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import timm_compat as tc
from benchmarks.clock import in_turns, now
from benchmarks.networks import CLASSES, FEATURES, adamw, fit_seconds, member, random_images

TITLE = "Joint training at full size"
TEXT = """Two members with common classes, `channels_last`, against timm's bare step (network, one classifier, AdamW;
the same precision, batch and compilation, images normalised already). *images/s : bare* is wanted at least 0.97. *MFU*:
counted FLOPs of the step, forward and backward, as a share of what the device does at most. *floor*: the least time of
a step, the larger of FLOPs / peak and bytes / bandwidth; *step : floor* is how far from it we are. Bytes: weights,
gradients and AdamW's moments read and written once (36 a weight), and what the forward pass saves for the backward one,
written and read once. Peaks: data sheet (dense bf16) on a GPU, measured with a product of matrices and a copy on a CPU.
Memory is the GPU allocator's peak."""
HEADER = (
    *("architecture", "pixels", "batch", "precision", "compiled", "images/s", "images/s : bare", "MFU"),
    *("floor, ms", "bound by", "step : floor", "peak memory, GiB"),
)
ARCHITECTURES = ("resnet50", "vit_small_patch16_224")
SMALL = ("test_resnet", "test_vit")
# FLOP/s of dense bf16 and bytes/s, NVIDIA's data sheets of the SXM boards.
PEAKS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12)}
# Weight, gradient and two moments of 4 bytes: written and read, the gradient once more by the backward pass.
ADAMW_BYTES = 36


def cells(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every architecture, as it is and compiled (compiled on a GPU only)."""
    compiled = (False, True) if options.device == "cuda" and not options.small else (False,)
    chosen = SMALL if options.small or options.device == "cpu" else ARCHITECTURES
    return {
        f"{name}{'-compiled' if flag else ''}": lambda name=name, flag=flag: measure(options, name, flag)
        for name in chosen
        for flag in compiled
    }


def measure(options: argparse.Namespace, name: str, compiled: bool) -> dict[str, Any]:
    """One row."""
    large = options.device == "cuda" and not options.small
    size, batch, steps = (224, 128, 20) if large else (32, 16, 3)
    precision = "bf16" if options.device == "cuda" else "no"
    datasets = [random_images(steps * batch, size, seed) for seed in range(2)]
    config = tc.TrainConfig(epochs=2, batch_size=batch, mixed_precision=precision, channels_last=True, compile=compiled)

    def ours() -> float:
        space = tc.CompatSpace(FEATURES, CLASSES, ["common_classes"])
        members = [member(space, f"m{number}", name, data) for number, data in enumerate(datasets)]
        return fit_seconds(space, members, config, lambda: now(options.device)) / (2 * batch * steps)

    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ours()
    memory = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else None
    bare = bare_step(options.device, name, size, batch, compiled)

    def theirs() -> float:
        start = now(options.device)
        for _ in range(2 * steps):
            bare()
        return (now(options.device) - start) / (2 * batch * steps)

    found = in_turns({"bare": theirs, "ours": ours}, options.repeats)  # a quotient of seconds, turned: images/s
    seconds, floor = 2 * batch * found["seconds"]["ours"], floor_of(options.device, name, size, batch)
    return {
        **found,
        "row": [name, size, batch, precision, "yes" if compiled else "no"],
        "images_per_second": 1 / found["seconds"]["ours"],
        "mfu": floor["flops"] / floor["peak_flops"] / seconds,
        "floor": floor,
        "step_to_floor": seconds / floor["seconds"],
        "memory_gib": memory,
    }


def bare_step(device: str, name: str, size: int, batch: int, compiled: bool) -> Callable[[], None]:
    """timm's own training step, on one batch again and again."""
    network = network_of(name, size).to(device, memory_format=torch.channels_last).train()
    optimizer = adamw(network)
    forward = torch.compile(network) if compiled else network
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(len(CLASSES), (batch,), device=device)
    precision = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()

    def step() -> None:
        with precision:
            loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def network_of(name: str, size: int) -> nn.Module:
    """timm's plain model for images of this size."""
    arguments = {"img_size": size} if "vit" in name else {}
    return timm.create_model(name, num_classes=len(CLASSES), **arguments)


def floor_of(device: str, name: str, size: int, batch: int) -> dict[str, Any]:
    """Least seconds of a step of two networks, from FLOPs and from bytes."""
    network = network_of(name, size).to(device).train()
    images = torch.randn(batch, 3, size, size, device=device)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    precision = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    with FlopCounterMode(display=False) as counter:
        with precision, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = network(images).sum()
        loss.backward()
    activations = sum(size for place, size in saved.items() if place not in weights)
    count = sum(parameter.numel() for parameter in network.parameters())
    flops = 2 * counter.get_total_flops()
    moved = 2 * (ADAMW_BYTES * count + 2 * activations)
    peak_flops, peak_bytes = peaks(device)
    times = {"FLOPs": flops / peak_flops, "bytes": moved / peak_bytes}
    bound = max(times, key=times.__getitem__)
    return {
        "flops": flops, "bytes": moved, "peak_flops": peak_flops, "peak_bytes": peak_bytes,
        "seconds": times[bound], "bound": bound,
    }  # fmt: skip


def peaks(device: str) -> tuple[float, float]:
    """FLOP/s and bytes/s at most."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        for known, values in PEAKS.items():
            if known in name:
                return values
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    matrix = torch.randn(1024, 1024, device=device, dtype=dtype)
    block = torch.randn(2**24, device=device)
    product = min(_seconds(lambda: matrix @ matrix, device) for _ in range(5))
    copied = min(_seconds(block.clone, device) for _ in range(5))
    return 2 * 1024**3 / product, 2 * block.nbytes / copied


def _seconds(work: Callable[[], Any], device: str) -> float:
    start = now(device)
    work()
    return now(device) - start


def row(result: dict[str, Any]) -> list[Any]:
    """The cells of a result's row."""
    floor, memory = result["floor"], result["memory_gib"]
    return [
        *result["row"], f"{result['images_per_second']:.0f}", result["ratios"]["bare"], f"{result['mfu']:.1%}",
        1000 * floor["seconds"], floor["bound"], f"{result['step_to_floor']:.1f}",
        "not measured" if memory is None else f"{memory:.1f}",
    ]  # fmt: skip
