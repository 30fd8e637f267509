#!/usr/bin/env python3
"""Four architectures and four heads in one space, and the same four trained apart: two reports side by side.

Trains on a part of CIFAR-10, saves all components, and runs `timm-compat evaluate` on each set of four. Also compares
the time of the matrix with that of composing and running every pair on its own.

    .venv/bin/python scripts/evaluate_cifar10.py ROOT OUTPUT
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import timm_compat as tc
from timm_compat.cli import main as timm_compat_main
from timm_compat.evaluation.feature_plot import feature_plot

ARCHITECTURES = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext")
IMG_SIZE = 32


def train_set(arguments: argparse.Namespace, part: int) -> tc.data.ArrayDataset:
    limit = arguments.images // len(ARCHITECTURES)
    return tc.data.load_dataset("CIFAR10", arguments.root, part=f"{part + 1}/{len(ARCHITECTURES)}", limit=limit)


def members(arguments: argparse.Namespace, spaces: list[tc.CompatSpace]) -> list[tc.Member]:
    made = []
    for part, (name, space) in enumerate(zip(ARCHITECTURES, spaces, strict=True)):
        torch.manual_seed(arguments.seed)
        dataset = train_set(arguments, part)
        extractor = tc.create_extractor(name, space, img_size=IMG_SIZE)
        made.append(tc.Member(name, extractor, tc.TaskHead(space, dataset.class_names), dataset))
    return made


def config(arguments: argparse.Namespace, **more: object) -> tc.TrainConfig:
    return tc.TrainConfig(
        epochs=arguments.epochs, batch_size=64, lr=5e-3, random_crop=4, hflip=0.5,
        seed=arguments.seed, **more,
    )  # fmt: skip


def train_together(arguments: argparse.Namespace, folder: Path) -> None:
    space = tc.CompatSpace(64, train_set(arguments, 0).class_names, ["common_classes"], seed=arguments.seed)
    settings = config(arguments, alignment="l2", output_dir=folder)
    tc.fit(space, members(arguments, [space] * len(ARCHITECTURES)), settings)


def train_apart(arguments: argparse.Namespace, folder: Path) -> None:
    for member in members(arguments, [tc.CompatSpace(64) for _ in ARCHITECTURES]):
        space = member.extractor.space
        tc.fit(space, [member], config(arguments))
        space.finalize(reference=member.extractor.digest())
        member.extractor.save_pretrained(folder / f"extractor-{member.name}")
        member.head.save_pretrained(folder / f"head-{member.name}")


def report(arguments: argparse.Namespace, folder: Path, *words: str) -> None:
    parts = [str(folder / f"{role}-{name}") for role in ("extractor", "head") for name in ARCHITECTURES]
    history = folder / "history.jsonl"
    extra = ["--history", str(history)] if history.exists() else []
    code = timm_compat_main(
        [
            *("evaluate", *parts, "--data", "CIFAR10", "--root", arguments.root, "--limit", str(arguments.test_images)),
            *("--baselines", "--train-limit", str(arguments.images), "--retrieval"),
            *("--report", str(folder / "report"), *extra, *words),
        ]
    )
    assert code == 0


def draw_before_and_after(arguments: argparse.Namespace, file: Path) -> None:
    test = tc.data.load_dataset("CIFAR10", arguments.root, "test", limit=400)
    pair = ARCHITECTURES[:2]
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for axis, (folder, title) in zip(axes, (("apart", "trained apart"), ("together", "in one space")), strict=True):
        paths = [arguments.output / folder / f"extractor-{name}" for name in pair]
        features = [tc.extract_features(tc.CompatExtractor.from_pretrained(path), test) for path in paths]
        feature_plot(*features, test.labels, test.class_names, names=pair, title=title, ax=axis)
    figure.savefig(file, dpi=110)


def compare_cost(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    extractors = {name: tc.CompatExtractor.from_pretrained(folder / f"extractor-{name}") for name in ARCHITECTURES}
    heads = {name: tc.TaskHead.from_pretrained(folder / f"head-{name}") for name in ARCHITECTURES}
    test = tc.data.load_dataset("CIFAR10", arguments.root, "test", limit=arguments.test_images)

    def passes() -> None:
        for extractor in extractors.values():
            tc.extract_features(extractor, test)

    def naive() -> None:
        for extractor in extractors.values():
            for head in heads.values():
                head(tc.extract_features(extractor, test)).argmax(dim=1)

    def ours() -> None:
        tc.recombination_matrix(extractors, heads, test)

    seconds: dict[str, float] = {}
    for name, work in (("n passes", passes), ("matrix", ours), ("n x m", naive)):
        work()
        rounds = []
        for _ in range(3):
            start = time.process_time()  # of the processor: others on the machine do not count
            work()
            rounds.append(time.process_time() - start)
        seconds[name] = min(rounds)
    return {**seconds, "matrix / n passes": seconds["matrix"] / seconds["n passes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder of CIFAR-10 as torchvision keeps it")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--images", type=int, default=4000, help="of training, over all members")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    train_together(arguments, arguments.output / "together")
    train_apart(arguments, arguments.output / "apart")
    print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
    report(arguments, arguments.output / "apart", "--cross-space")
    alone = str(arguments.output / "apart" / "report" / "report.json")
    report(arguments, arguments.output / "together", "--alone", alone)
    draw_before_and_after(arguments, arguments.output / "before_and_after.png")
    with torch.no_grad():
        print(json.dumps(compare_cost(arguments, arguments.output / "together"), indent=2))


if __name__ == "__main__":
    main()
