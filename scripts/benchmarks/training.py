"""The trainer against plain PyTorch loops on the same work, and how its cost grows."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

import timm_compat as tc
from benchmarks.by_hand import adapter_step, joint_step
from benchmarks.clock import Run, in_turns, now
from benchmarks.networks import CLASSES, FEATURES, fit_seconds, member, random_images
from benchmarks.steps import WARM_UP, Pairs, in_processes, pairs_of

TITLE = "Training"
TEXT = """`tc.fit` against loops written by hand (`scripts/benchmarks/by_hand.py`): the same backbones, losses, batches
and optimiser. A step of ours and one by hand are done in turns, in three fresh processes; the ratio is over all pairs,
*processes* tells the lowest and the highest median of one process (*one*: whole epochs in turns, in one). Building and
placing the networks is not counted. *joint* is two members with common classes; *rotation* and *alignment* (L2) come on
top. *adapter* learns interface and heads on cached features, in steps of a few milliseconds, where what the trainer
does for every step (seeds, schedule, a check of the loss, means for the log) weighs most; the end of an epoch is
counted too, every 8 steps. *members* compares an epoch of n members with n epochs of one member: 1 is linear growth,
wanted at most 1.05. *epoch through the backbone* is the adapter's without the cache."""
HEADER = ("what", "backbone", "batch", "pixels", "ratio", "processes", "ours, ms a step", "against")
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
    found["adapter"] = lambda: adapter(options, name, batch)
    found["adapter-backbone"] = lambda: through_backbone(options, name, batch)
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
    found = in_processes(joint_pairs, options.device, options.repeats, name, batch, size, rotation, align)
    return {"row": [name, batch, size], "steps": 1, **found}


def joint_pairs(device: str, repeats: int, name: str, batch: int, size: int, rotation: bool, align: bool) -> Pairs:
    """Steps of two members and steps by hand, within one epoch."""
    data = [random_images((WARM_UP + repeats) * batch, size, seed) for seed in range(2)]
    space = tc.CompatSpace(FEATURES, CLASSES, ["common_classes", *(["rotation"] if rotation else [])])
    members = [member(space, f"m{i}", name, part) for i, part in enumerate(data)]

    config = tc.TrainConfig(epochs=1, batch_size=batch, alignment="l2" if align else "none")

    def fit(turns: tc.Callback) -> None:
        tc.fit(space, members, config, callbacks=[turns], progress=None)

    return pairs_of(fit, joint_step(data, name, batch, device, rotation, align), device)


def growth(options: argparse.Namespace, name: str, batch: int, count: int) -> dict[str, Any]:
    """Several members against as many times one."""
    data = [random_images(STEPS * batch, 32, seed) for seed in range(count)]
    several = trainer(options, name, batch, data, ["common_classes"])
    alone = trainer(options, name, batch, data[:1], ["common_classes"])
    runs = {"ours": several, f"{count} x one member": lambda: count * alone()}
    return {"row": [name, batch, 32], "steps": STEPS, **in_turns(runs, max(3, options.repeats // 2))}


def adapter(options: argparse.Namespace, name: str, batch: int) -> dict[str, Any]:
    """A frozen backbone's interface and heads on cached features, and the same by hand."""
    found = in_processes(adapter_pairs, options.device, options.repeats, name, batch)
    return {"row": [name, batch, 32], "steps": 1, **found}


def adapter_pairs(device: str, repeats: int, name: str, batch: int) -> Pairs:
    """Steps of an adapter and steps by hand, an epoch's together."""
    data = random_images(ADAPTER_IMAGES, 32)
    space = tc.CompatSpace(FEATURES, CLASSES, ["common_classes"])
    one = member(space, "m", name, data, trainable="adapter")
    with torch.no_grad():
        features = one.extractor.eval().backbone(one.extractor.preprocess(data.images))
    config = tc.TrainConfig(epochs=WARM_UP + repeats, batch_size=batch)

    def fit(turns: tc.Callback) -> None:
        tc.fit(space, [one], config, callbacks=[turns], progress=None)

    by_hand = adapter_step(features, data.labels, batch, device)
    return pairs_of(fit, by_hand, device, together=len(data) // batch)


def through_backbone(options: argparse.Namespace, name: str, batch: int) -> dict[str, Any]:
    """An adapter's epoch without a cache against one with it."""
    data = [random_images(2 * batch, 32)]
    arguments = (options, name, batch, data, ["common_classes"], "adapter")
    runs = {"ours": trainer(*arguments, cache_features=False), "cached features": trainer(*arguments)}
    return {"row": [name, batch, 32], "steps": 2, **in_turns(runs, options.repeats)}


def row(result: dict[str, Any]) -> list[Any]:
    """The cells of a result's row."""
    title = "epoch through the backbone" if result["name"] == "adapter-backbone" else result["name"].replace("-", " ")
    step = 1000 * result["seconds"]["ours"] / result["steps"]
    medians = sorted(result.get("processes", ()))
    between = f"{medians[0]:.2f} to {medians[-1]:.2f}" if medians else "one"
    return [title, *result["row"], result["ratios"]["ours"], between, step, result["against"]]
