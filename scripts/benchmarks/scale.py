"""What a zoo of N extractors and M heads costs: ours, retraining every pair, stitching every pair."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

import timm_compat as tc
from benchmarks.clock import now
from benchmarks.networks import CLASSES, FEATURES, member, random_images
from timm_compat.evaluation.post_hoc import stitching

TITLE = "Scale"
TEXT = """Seconds for all pairs of N networks with their N heads (M = N). *ours*: one training of N members with common
classes. *stitching*: N trainings apart, then a linear layer for every exchanged pair on the features of all images,
each network seeing the images once. *retraining*: every extractor trained anew for every task. Rows in italics are
**extrapolated, not measured**, with the slopes of the measured rows: ours grows with N, retraining with N squared,
stitching with N (trainings) and with N (N - 1) (layers). The trainings are short; with longer ones a stitched pair
weighs less beside a training."""
HEADER = ("N x N", "ours, s", "stitching every pair, s", "retraining every pair, s", "retraining : ours")
EXTRAPOLATED = (10, 30)
EPOCHS = 2


def cells(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """One measurement for every N."""
    return {str(count): lambda count=count: measure(options, count) for count in ((2,) if options.small else (2, 3, 4))}


def measure(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Seconds of the three ways at one N."""
    images = 64 if options.small else 512
    datasets = [random_images(images, 32, seed) for seed in range(count)]
    start = now(options.device)
    train(options, datasets, ["common_classes"])
    ours = now(options.device) - start
    start = now(options.device)
    apart = [train(options, [data], [])[0] for data in datasets]
    once = now(options.device) - start
    start = now(options.device)
    stitch(apart, datasets)
    stitched = once + now(options.device) - start
    start = now(options.device)
    for _ in range(count):
        for data in datasets:
            train(options, [data], [])
    seconds = {"ours": ours, "trained once": once, "stitching": stitched, "retraining": now(options.device) - start}
    return {"row": [count], "seconds": seconds}


def train(options: argparse.Namespace, datasets: list[tc.data.ArrayDataset], methods: list[str]) -> list[tc.Member]:
    """Members that share these methods."""
    name = "test_resnet"
    space = tc.CompatSpace(FEATURES, CLASSES if methods else (), methods)
    members = [member(space, f"m{number}", name, data) for number, data in enumerate(datasets)]
    tc.fit(space, members, tc.TrainConfig(epochs=EPOCHS, batch_size=32), progress=None)
    return members


def stitch(members: list[tc.Member], datasets: list[tc.data.ArrayDataset]) -> None:
    """A trained linear layer from every extractor to every other's head."""
    for number, one in enumerate(members):
        for other, target in enumerate(members):
            if number != other:
                features = tc.extract_features(one.extractor, datasets[other])
                stitching(features, datasets[other].labels, target.head, epochs=EPOCHS)


def rows(results: list[dict[str, Any]]) -> list[list[Any]]:
    """Measured rows, then extrapolated ones."""
    found = [cost_row(f"{r['row'][0]} x {r['row'][0]}", r["seconds"]) for r in results]
    if len(results) < 2:
        return found
    counts = torch.tensor([float(result["row"][0]) for result in results])
    for count in EXTRAPOLATED:
        seconds = {
            "ours": line(counts, [r["seconds"]["ours"] for r in results], count),
            "retraining": line(counts**2, [r["seconds"]["retraining"] for r in results], count**2),
            "stitching": line(counts, [r["seconds"]["trained once"] for r in results], count)
            + line(
                counts * (counts - 1),
                [r["seconds"]["stitching"] - r["seconds"]["trained once"] for r in results],
                count * (count - 1),
            ),
        }
        found.append(
            [
                f"*{cell}*" if i == 0 else cell
                for i, cell in enumerate(cost_row(f"{count} x {count}, extrapolated", seconds))
            ]
        )
    return found


def cost_row(title: str, seconds: dict[str, float]) -> list[Any]:
    """The cells of one N."""
    times = [seconds[key] for key in ("ours", "stitching", "retraining")]
    return [title, *times, f"{seconds['retraining'] / seconds['ours']:.1f}"]


def line(places: torch.Tensor, values: list[float], place: float) -> float:
    """The least-squares line at a place."""
    design = torch.stack([places, torch.ones_like(places)], dim=1)
    slope, offset = torch.linalg.lstsq(design, torch.tensor(values, dtype=design.dtype)[:, None]).solution.flatten()
    return float(slope * place + offset)
