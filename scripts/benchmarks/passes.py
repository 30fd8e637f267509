"""The engine that passes images through frozen networks against a bare timm loop, and 100 heads against one."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import timm_compat as tc
from benchmarks.clock import Run, in_turns, timed
from benchmarks.networks import CLASSES, FEATURES, random_images
from timm_compat.models.batch_size import default_batch_size
from timm_compat.models.passes import best_layout, passes, placed
from timm_compat.models.run_options import PRECISIONS, RunOptions

TITLE = "Passes of frozen networks"
TEXT = """One pass over images in memory (uint8, at the network's size), at the batch size that is chosen by default.
*pass*: `passes`, which copies, normalises, runs backbone and interface, and gives the features of a batch. The bare
loop does the same by hand with the timm model alone, in the same batches, precision and memory layout. *heads*: a model
of `compose(extractor, {name: head})` with 100 linear heads of ten classes against one with a single head, batch 8.
Wanted: at most 1.05 (0.95 of the bare loop's images/s; 5 % for 99 heads more)."""
HEADER = ("what", "architecture", "pixels", "batch", "precision", "images/s", "time : bare, or : one head")
HEADS = 100
HEAD_BATCH = 8
SECONDS = 1.0  # of one pass on a GPU
CPU_IMAGES = 16

FULL = {
    "cuda": ("resnet50", "vit_base_patch16_224"),
    "cpu": ("resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"),
}
SMALL = ("test_resnet", "test_vit")


def cells(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every network in every precision, then the heads; bf16 on a GPU only, where it is fast."""
    names, size = (SMALL, 32) if options.small else (FULL[options.device], 224)
    kinds = ("bf16", None) if options.device == "cuda" else (None,)
    found = {
        f"{name}-{amp or 'float32'}": lambda name=name, amp=amp: measure_pass(options, name, size, amp)
        for name in names
        for amp in kinds
    }
    return found | {f"heads-{names[0]}": lambda: measure_heads(options, names[0], size)}


def measure_pass(options: argparse.Namespace, name: str, size: int, amp: str | None) -> dict[str, Any]:
    """The engine against the bare loop."""
    device = torch.device(options.device)
    extractor = tc.create_extractor(name, tc.CompatSpace(FEATURES), img_size=size).eval().to(device)
    batch = default_batch_size([extractor.data_config], [extractor], device)
    count = CPU_IMAGES if device.type == "cpu" else 8 * batch
    images = random_images(max(batch, count // batch * batch), size).images
    settings = RunOptions(options.device, batch, amp, progress=False)
    ours = timed(
        lambda: [passed.outputs[0] for passed in passes([extractor], images, options=settings)], options.device
    )
    if device.type == "cuda":  # as many as take long enough to be timed
        ours()
        images = images.repeat(max(1, round(SECONDS / ours())), 1, 1, 1)
    theirs = timed(bare_loop(extractor.backbone.model, extractor.data_config, images, batch, amp), options.device)
    found = in_turns({"ours": ours, "bare": theirs}, options.repeats)
    speed = len(images) / found["seconds"]["ours"]
    return {**found, "row": ["pass", name, size, batch, amp or "float32", f"{speed:.0f}"], "ratio": "ours"}


def bare_loop(
    model: nn.Module, data_config: Mapping[str, Any], images: Tensor, batch: int, amp: str | None
) -> Callable[[], list[Tensor]]:
    """What one writes by hand around the plain timm model; gives its outputs on the images (N, C, S, S), uint8."""
    device = next(model.parameters()).device
    mean, std = (torch.tensor(data_config[key], device=device)[:, None, None] for key in ("mean", "std"))
    layout = best_layout([model], device, amp)

    def work() -> list[Tensor]:
        outputs = []
        precision: Any = torch.autocast(device.type, PRECISIONS[amp]) if amp else nullcontext()
        with torch.no_grad(), precision, placed([model], device, layout):
            for part in images.split(batch):
                pixels = part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else part
                inputs = (pixels.float() / 255 - mean) / std
                outputs.append(model(inputs.contiguous(memory_format=layout)).float())
        return outputs

    return work


def measure_heads(options: argparse.Namespace, name: str, size: int) -> dict[str, Any]:
    """100 heads against one."""
    device = torch.device(options.device)
    space = tc.CompatSpace(FEATURES)
    extractor = tc.create_extractor(name, space, img_size=size)
    many = tc.compose(extractor, {f"head {number}": tc.TaskHead(space, CLASSES) for number in range(HEADS)})
    one = tc.compose(extractor, {"head": tc.TaskHead(space, CLASSES)})
    inputs = torch.randn(HEAD_BATCH, 3, size, size, device=device)

    def run(model: tc.MultiHeadModel) -> Run:
        model.to(device).eval()
        return timed(lambda: model(inputs), options.device)

    with torch.inference_mode():
        found = in_turns({"many": run(many), "one": run(one)}, options.repeats)
    speed = HEAD_BATCH / found["seconds"]["many"]
    return {**found, "row": [f"{HEADS} heads", name, size, HEAD_BATCH, "float32", f"{speed:.0f}"], "ratio": "many"}


def row(result: dict[str, Any]) -> list[Any]:
    """The cells of a result's row."""
    return [*result["row"], result["ratios"][result["ratio"]]]
