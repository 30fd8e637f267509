"""The trainer against plain PyTorch loops on the same work, and how its cost grows."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

import timm_compat as tc
from benchmarks.by_hand import adapter_loop, loop
from benchmarks.clock import Run, in_turns, now
from benchmarks.networks import CLASSES, FEATURES, fit_seconds, member, random_images

TITLE = "Training"
TEXT = """`tc.fit` against loops written by hand (`scripts/benchmarks/by_hand.py`): the same backbones, losses, batches
and optimiser. An epoch is timed after one for warming up; building and placing the networks is not counted. *joint* is
two members with common classes; *rotation* and *alignment* (L2) come on top. *members* compares n members with n times
one member: 1 is linear growth, wanted at most 1.05. *adapter* learns interface and heads on cached features, in steps
of a millisecond or two, where what the trainer does for every step (seeds, schedule, a check of the loss, means for
the log) weighs most; *epoch through the backbone* is the same training without the cache."""
HEADER = ("what", "backbone", "batch", "pixels", "ratio", "ours, ms a step", "against")
STEPS, ADAPTER_IMAGES = 3, 512


def cells(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every row of the table."""
    name, batch = ("test_resnet", 16) if options.small else ("resnet18", 64)
    found = {
        "joint": lambda: against_loop(options, name, batch, 32),
        "rotation": lambda: against_loop(options, name, batch, 32, rotation=True),
        "alignment": lambda: against_loop(options, name, batch, 32, align=True),
        "joint-small-network": lambda: against_loop(options, "test_resnet", batch, 32),
    }
    for count in (2,) if options.small else (2, 4, 8):
        found[f"members-{count}"] = lambda count=count: growth(options, name, batch // 2, count)
    for size in () if options.small else (16, 128):
        found[f"batch-{size}"] = lambda size=size: against_loop(options, name, size, 32)
    for pixels in () if options.small else (64, 96):
        found[f"pixels-{pixels}"] = lambda pixels=pixels: against_loop(options, name, 16, pixels)
    found["adapter"] = lambda: adapter(options, name, batch, cached=True)
    found["adapter-backbone"] = lambda: adapter(options, name, batch, cached=False)
    return found


def trainer(
    options: argparse.Namespace, name: str, batch: int, data: list, methods, trainable="full", **settings
) -> Run:
    """Seconds of an epoch of ``fit``; every run trains the same members on."""
    config = tc.TrainConfig(epochs=2, batch_size=batch, **settings)

    def run() -> float:
        space = tc.CompatSpace(FEATURES, CLASSES, methods)
        members = [member(space, f"m{i}", name, part, trainable=trainable) for i, part in enumerate(data)]
        return fit_seconds(space, members, config, lambda: now(options.device))

    return run


def against_loop(options: argparse.Namespace, name: str, batch: int, size: int, rotation=False, align=False) -> dict:
    """Two members, and the same by hand."""
    data = [random_images(STEPS * batch, size, seed) for seed in range(2)]
    methods = ["common_classes", *(["rotation"] if rotation else [])]
    settings = {"alignment": "l2"} if align else {}
    runs = {
        "ours": trainer(options, name, batch, data, methods, **settings),
        "by hand": loop(data, name, batch, options.device, rotation, align),
    }
    return {"row": [name, batch, size], "steps": STEPS, **in_turns(runs, options.repeats)}


def growth(options: argparse.Namespace, name: str, batch: int, count: int) -> dict[str, Any]:
    """Several members against as many times one."""
    data = [random_images(STEPS * batch, 32, seed) for seed in range(count)]
    several = trainer(options, name, batch, data, ["common_classes"])
    alone = trainer(options, name, batch, data[:1], ["common_classes"])
    runs = {"ours": several, f"{count} x one member": lambda: count * alone()}
    return {"row": [name, batch, 32], "steps": STEPS, **in_turns(runs, max(3, options.repeats // 2))}


def adapter(options: argparse.Namespace, name: str, batch: int, cached: bool) -> dict[str, Any]:
    """A frozen backbone: on cached features against a loop by hand, or without a cache against with one."""
    data = random_images(ADAPTER_IMAGES if cached else 2 * batch, 32)
    ours = trainer(options, name, batch, [data], ["common_classes"], trainable="adapter")
    if cached:
        extractor = tc.create_extractor(name, tc.CompatSpace(FEATURES), img_size=32).eval()
        with torch.no_grad():
            features = extractor.backbone(extractor.preprocess(data.images))
        runs = {"ours": ours, "by hand": adapter_loop(features, data.labels, batch, options.device)}
    else:
        through = trainer(
            options, name, batch, [data], ["common_classes"], trainable="adapter", cache_features=False
        )  # fmt: skip
        runs = {"ours": through, "cached features": ours}
    return {"row": [name, batch, 32], "steps": len(data) // batch, **in_turns(runs, options.repeats)}


def row(result: dict[str, Any]) -> list[Any]:
    """The cells of a result's row."""
    title = "epoch through the backbone" if result["name"] == "adapter-backbone" else result["name"].replace("-", " ")
    step = 1000 * result["seconds"]["ours"] / result["steps"]
    return [title, *result["row"], result["ratios"]["ours"], step, result["against"]]
