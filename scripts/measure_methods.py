#!/usr/bin/env python3
"""Measure native and recombined accuracy for every method and combination, over seeds.

Two networks of different architecture learn label sets that overlap in part (the first seven classes and the last
seven of ten), on disjoint halves of a data set. One row of the table is one method: accuracy of extractors under their
own heads, and of the other pairs on all classes of the head, on the common ones, and on the head's private ones.

    .venv/bin/python scripts/measure_methods.py                                     # digits, embedded
    .venv/bin/python scripts/measure_methods.py --cifar10 ROOT --images 5000 --epochs 8 --batch-size 128 \
        --learning-rate 5e-3
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import timm_compat as tc

# What is shared: methods of the space, settings of the training, and whether both networks are of one architecture.
SETTINGS: dict[str, tuple[tuple[str, ...], dict, bool]] = {
    "nothing": ((), {}, False),
    "rotation": (("rotation",), {}, False),
    "rotation, paper's form": (("rotation",), {"self_supervised_fraction": 1.0, "self_supervised_all": True}, False),
    "common classes": (("common_classes",), {}, False),
    "simplex": (("simplex",), {}, False),
    "common classes + rotation": (("common_classes", "rotation"), {}, False),
    "alignment (L2)": ((), {"alignment": "l2"}, False),
    "alignment (contrastive)": ((), {"alignment": "contrastive"}, False),
    "common classes + alignment (L2)": (("common_classes",), {"alignment": "l2"}, False),
    "common classes + alignment (contrastive)": (("common_classes",), {"alignment": "contrastive"}, False),
    "simplex + alignment (contrastive)": (("simplex",), {"alignment": "contrastive"}, False),
    "common classes + rotation + alignment (contrastive)": (
        ("common_classes", "rotation"),
        {"alignment": "contrastive"},
        False,
    ),
    "nothing, one architecture": ((), {}, True),
    "initial weights, one architecture": (("initial_weights",), {}, True),
    "rotation + initial weights, one architecture": (("rotation", "initial_weights"), {}, True),
    "common classes + initial weights, one architecture": (("common_classes", "initial_weights"), {}, True),
    "all three of the paper, one architecture": (("common_classes", "initial_weights", "rotation"), {}, True),
}
COLUMNS = ("native", "recombined", "recombined_common", "recombined_private")


def load(arguments: argparse.Namespace) -> tuple[tc.data.ArrayDataset, tc.data.ArrayDataset]:
    if arguments.cifar10 is None:
        return tc.data.load_dataset("digits"), tc.data.load_dataset("digits", split="test")
    return tuple(tc.data.load_dataset("CIFAR10", arguments.cifar10, split) for split in ("train", "test"))


def measure(arguments: argparse.Namespace, name: str, seed: int) -> dict:
    methods, settings, one_architecture = SETTINGS[name]
    train, test = load(arguments)
    classes = train.class_names
    own = {"a": classes[:7], "b": classes[3:]}
    common = [label for label in classes if label in own["a"] and label in own["b"]]
    vocabulary = common if {"common_classes", "simplex"} & set(methods) else ()
    space = tc.CompatSpace(arguments.feature_dim, vocabulary, methods, seed=seed)
    halves = dict(zip("ab", train.halves(torch.Generator().manual_seed(seed)), strict=True))
    backbones = {"a": arguments.backbones[0], "b": arguments.backbones[0 if one_architecture else 1]}
    channels, size = train.images.shape[1], max(32, train.images.shape[-1])
    torch.manual_seed(seed)
    members = []
    for member, labels in own.items():
        data = halves[member].of_classes(labels)
        data = data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: arguments.images])
        extractor = tc.create_extractor(backbones[member], space, in_chans=channels, img_size=size)
        members.append(tc.Member(member, extractor, tc.TaskHead(space, labels), data))
    config = tc.TrainConfig(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        random_crop=1 if arguments.cifar10 is None else 4,
        hflip=0.5 if arguments.cifar10 is not None else 0.0,
        seed=seed,
        **settings,
    )
    start = time.perf_counter()
    tc.fit(space, members, config, progress=None)
    return {"shared": name, "seed": seed, **accuracies(members, test, common), "seconds": time.perf_counter() - start}


def accuracies(members: list[tc.Member], test: tc.data.ArrayDataset, common: list[str]) -> dict[str, float]:
    extractors = {member.name: member.extractor for member in members}
    found: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for member in members:
        private = [label for label in member.head.class_names if label not in common]
        for column, labels in (("", member.head.class_names), ("_common", common), ("_private", private)):
            matrix = tc.recombination_matrix(extractors, {member.name: member.head}, test.of_classes(labels))
            if not column:
                found["native"].append(matrix.native_accuracy)
            found[f"recombined{column}"].append(matrix.recombined_accuracy)
    return {column: statistics.mean(values) for column, values in found.items()}


def table(results: list[dict]) -> str:
    lines = ["| shared | " + " | ".join(COLUMNS) + " | seeds |", "| --- |" + " ---: |" * (len(COLUMNS) + 1)]
    for name in dict.fromkeys(result["shared"] for result in results):
        chosen = [result for result in results if result["shared"] == name]
        cells = []
        for column in COLUMNS:
            values = [result[column] for result in chosen]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} | {len(chosen)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", metavar="ROOT", help="folder with torchvision's CIFAR-10; the digits if left out")
    parser.add_argument("--images", type=int, default=5000, help="images a network at most")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--feature-dim", type=int, default=64)
    parser.add_argument("--backbones", nargs=2, default=["test_resnet", "test_efficientnet"], metavar=("A", "B"))
    parser.add_argument("--only", nargs="*", choices=SETTINGS, help="these rows; all if left out")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON lines of all results, appended")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for seed in arguments.seeds:
        for name in arguments.only or SETTINGS:
            results.append(measure(arguments, name, seed))
            print(json.dumps(results[-1]), flush=True)
            if arguments.output:
                with arguments.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
