#!/usr/bin/env python3
"""Measure what the interface's normalisation and the task heads' start and weight decay do to recombination.

Two networks on disjoint halves of a data set, all classes in common, are trained jointly with one shared head over
the classes. One row of the printed table is one setting, averaged over seeds.

    .venv/bin/python scripts/measure_defaults.py                          # digits, embedded, minutes
    .venv/bin/python scripts/measure_defaults.py --cifar10 ROOT --images 8000 --epochs 8   # torchvision's layout
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch

import timm_compat as tc

PAIRS = (("test_resnet", "test_resnet"), ("test_resnet", "test_efficientnet"))
# Task heads' start, interface's normalisation, task heads' weight decay.
SETTINGS = (
    ("random", "none", 1e-4),
    ("random", "batch", 1e-4),
    ("random", "batch", 5.0),
    ("zero", "none", 1e-4),
    ("zero", "batch", 1e-4),
    ("zero", "batch", 5.0),
    ("zero", "layer", 5.0),
)
KEYS = ("pair", "start", "normalization", "head_weight_decay")


def load(arguments: argparse.Namespace) -> tuple[tc.data.ArrayDataset, tc.data.ArrayDataset]:
    if arguments.cifar10 is None:
        return tc.data.load_digits("train"), tc.data.load_digits("test")
    from torchvision.datasets import CIFAR10

    parts = (CIFAR10(arguments.cifar10, train=train) for train in (True, False))
    train, test = (tc.data.ArrayDataset.from_arrays(part.data, part.targets, part.classes) for part in parts)
    return train, test


def measure(arguments: argparse.Namespace, pair: tuple[str, str], setting: tuple[str, str, float], seed: int) -> dict:
    initial, normalization, decay = setting
    train, test = load(arguments)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    halves = train.subset(order[: 2 * arguments.images]).halves(torch.Generator().manual_seed(seed))
    methods = arguments.methods.split(",") if arguments.methods else ()
    space = tc.CompatSpace(64, train.class_names, methods, normalization=normalization, seed=seed)
    torch.manual_seed(seed)
    channels, size = train.images.shape[1], max(32, train.images.shape[-1])
    extractors = {
        name: tc.create_extractor(backbone, space, in_chans=channels, img_size=size)
        for name, backbone in zip("ab", pair, strict=True)
    }
    heads = {name: tc.TaskHead(space, train.class_names) for name in extractors}
    if initial == "random":
        for head in heads.values():
            head.classifier.reset_parameters()
    members = [tc.Member(name, extractors[name], heads[name], half) for name, half in zip("ab", halves, strict=True)]
    config = tc.TrainConfig(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        head_weight_decay=decay,
        random_crop=1 if arguments.cifar10 is None else 4,
        hflip=0.5 if arguments.cifar10 is not None else 0.0,
        seed=seed,
    )
    start = time.perf_counter()
    tc.fit(space, members, config)
    matrix = tc.recombination_matrix(extractors, heads, test)
    return {
        "pair": " x ".join(pair),
        "start": initial,
        "normalization": normalization,
        "head_weight_decay": decay,
        "seed": seed,
        "accuracy": matrix.accuracy.tolist(),
        "native": matrix.native_accuracy,
        "recombined": matrix.recombined_accuracy,
        "seconds": time.perf_counter() - start,
    }


def table(results: list[dict]) -> str:
    lines = [
        "| pair | heads start | normalization | head decay | native | recombined | gap | seeds |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for setting in dict.fromkeys(tuple(result[key] for key in KEYS) for result in results):
        chosen = [result for result in results if tuple(result[key] for key in KEYS) == setting]
        native, recombined = (statistics.mean(result[key] for result in chosen) for key in ("native", "recombined"))
        cells = [
            *map(str, setting),
            f"{native:.3f}",
            f"{recombined:.3f}",
            f"{native - recombined:.3f}",
            str(len(chosen)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", metavar="ROOT", help="folder with torchvision's CIFAR-10; the digits if left out")
    parser.add_argument("--images", type=int, default=8000, help="images of each half at most")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--methods", default="common_classes", help="of the space, comma-separated; '' for none")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--output", type=Path, help="JSON file of all results")
    arguments = parser.parse_args()
    results = []
    for pair, setting, seed in itertools.product(PAIRS, SETTINGS, range(arguments.seeds)):
        results.append(measure(arguments, pair, setting, seed))
        print(json.dumps(results[-1]), flush=True)
    print(table(results))
    if arguments.output:
        arguments.output.write_text(
            json.dumps({"arguments": vars(arguments), "results": results}, indent=2, default=str)
        )


if __name__ == "__main__":
    main()
