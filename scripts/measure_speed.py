#!/usr/bin/env python3
"""Measure what compatible training costs: alternating runs of A and B, the median ratio of their times.

- joint: two members with common classes, against two plain PyTorch loops with the same networks and losses.
- rotation, alignment: the same joint training with the default rotation, or with L2 alignment, against without.
- adapter: an epoch on cached features against an epoch through the frozen backbone, resnet18 at 224 px, and through a
  backbone that learns.
- loader: share of a step that the in-memory stream with crop and flip takes.

    .venv/bin/python scripts/measure_speed.py                        # images of random pixels: speed does not see them
    .venv/bin/python scripts/measure_speed.py --backbone resnet18 --repeats 9
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import timm_compat as tc
from timm_compat.data.batches import BatchStream

CLASSES = [f"class {number}" for number in range(10)]


def images(count: int, size: int) -> tc.ArrayDataset:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=random)
    return tc.ArrayDataset(pixels, torch.randint(10, (count,), generator=random), tuple(CLASSES))


def members_of(space: tc.CompatSpace, backbone: str, data: tc.ArrayDataset, size: int, **arguments) -> list[tc.Member]:
    return [
        tc.Member(
            name, tc.create_extractor(backbone, space, img_size=size, **arguments), tc.TaskHead(space, CLASSES), data
        )
        for name in "ab"
    ]


def device_of() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def joint(options: argparse.Namespace, methods=("common_classes",), **settings) -> Callable[[], float]:
    data = images(options.steps * options.batch_size, 32)
    config = tc.TrainConfig(epochs=1, batch_size=options.batch_size, **settings)

    def run() -> float:
        space = tc.CompatSpace(64, CLASSES, methods)
        members = members_of(space, options.backbone, data, 32)
        return tc.fit(space, members, config, progress=None).seconds

    return run


def plain(options: argparse.Namespace) -> Callable[[], float]:
    """Two loops as one writes them by hand: backbone, linear, BatchNorm, own classifier and a second one."""
    data, device = images(options.steps * options.batch_size, 32), device_of()
    pixels, labels = data.images.to(device), data.labels.to(device)

    def run() -> float:
        space = tc.CompatSpace(64, CLASSES, ["common_classes"])
        networks = [
            nn.ModuleList([member.extractor, nn.Linear(64, 10), nn.Linear(64, 10)]).to(device)
            for member in members_of(space, options.backbone, data, 32)
        ]
        start = time.perf_counter()
        for network in networks:
            extractor, own, shared = network.train()
            groups = [
                {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.05},
                {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, lr=2e-3)
            order = torch.randperm(len(pixels)).to(device)
            for chosen in order.split(options.batch_size):
                features = extractor(extractor.preprocess(pixels[chosen]))
                loss = F.cross_entropy(own(features), labels[chosen]) + F.cross_entropy(
                    shared(features), labels[chosen]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def adapter(options: argparse.Namespace, cached: bool, trainable: str = "adapter") -> Callable[[], float]:
    data = images(options.images_224, 224)

    def run() -> float:
        space = tc.CompatSpace(64, CLASSES, ["common_classes"])
        members = members_of(space, "resnet18", data, 224, trainable=trainable)[:1]
        epochs = 20 if cached else 1
        config = tc.TrainConfig(epochs=epochs, batch_size=32, cache_features=cached)
        history = tc.fit(space, members, config, progress=None).history
        # The first epoch is left out where there are several: it holds what happens once.
        first = history[0]["seconds"] if cached else 0.0
        return (history[-1]["seconds"] - first) / max(1, epochs - 1)

    return run


def loader_share(options: argparse.Namespace) -> float:
    data, device = images(options.steps * options.batch_size, 32), device_of()
    step = joint(options, random_crop=4, random_flip=True)()
    streams = [
        BatchStream(data, options.batch_size, 0, name, random_crop=4, random_flip=True, device=device) for name in "ab"
    ]
    start = time.perf_counter()
    for stream in streams:
        for _ in stream.batches(0, options.steps):
            pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / step


def ratio(first: Callable[[], float], second: Callable[[], float], repeats: int) -> dict:
    first(), second()
    pairs = [(first(), second()) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "most": ratios[-1],
        "seconds": [statistics.median(times) for times in zip(*pairs, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="of joint, rotation, alignment and loader")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="of one run")
    parser.add_argument("--images-224", type=int, default=128, help="images of the adapter's epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the CPU; PyTorch's choice if left out")
    parser.add_argument("--only", nargs="*", help="some of: joint rotation alignment adapter adapter_full loader")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    comparisons = {
        "joint": lambda: ratio(joint(options), plain(options), options.repeats),
        "rotation": lambda: ratio(joint(options, ("common_classes", "rotation")), joint(options), options.repeats),
        "alignment": lambda: ratio(joint(options, alignment="l2"), joint(options), options.repeats),
        "adapter": lambda: ratio(adapter(options, False), adapter(options, True), max(1, options.repeats // 3)),
        "adapter_full": lambda: ratio(
            adapter(options, False, "full"), adapter(options, True), max(1, options.repeats // 3)
        ),
        "loader": lambda: {"share": statistics.median(loader_share(options) for _ in range(options.repeats))},
    }
    for name in options.only or comparisons:
        print(json.dumps({"measured": name, "backbone": options.backbone, **comparisons[name]()}), flush=True)


if __name__ == "__main__":
    main()
