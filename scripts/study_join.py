#!/usr/bin/env python3
"""Measure what a frozen backbone reaches under a head that it never saw, by size of the unlabelled pool.

Two networks of different architecture are trained independently on CIFAR-10, A on the first seven classes of one half
of the images, B on the last seven of the other half. Each is then joined to the other's space from images of the
head's own data set. One row of the printed table is one cell, pool size and variant: accuracy in [0, 1] on all test
images of the head's classes, mean and standard deviation over draws of the pool, and its share of the ceiling. The
ceiling is a logistic regression with the labels that the existing head had, on the joining backbone's standardised
pooled features, the best of three penalties. "with labels" is the same on the labelled images of the pool alone.
"self-trained" is what ``join`` does when it is given the head.

    .venv/bin/python scripts/study_join.py --cifar10 ROOT                        # torchvision's layout; trains both
    .venv/bin/python scripts/study_join.py --cifar10 ROOT --folders A B          # each with extractor/ and head/
"""

import argparse
import json
import statistics
import warnings
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.datasets import CIFAR10

import timm_compat as tc

CLASSES = {"a": slice(0, 7), "b": slice(3, 10)}
PENALTIES = (1.0, 0.1, 0.01)  # scikit-learn's C
VARIANTS = {
    "ridge": {"augment": False, "self_training": False},
    "ridge, augmented": {"self_training": False},
    "self-trained": {},
}
EVALUATION_BATCH = 500

Part = tuple[tc.CompatExtractor, tc.TaskHead]


def load(arguments: argparse.Namespace) -> tuple[dict[str, tc.ArrayDataset], dict[str, tc.ArrayDataset]]:
    sets = (CIFAR10(arguments.cifar10, train=train) for train in (True, False))
    train, test = (tc.ArrayDataset.from_arrays(part.data, part.targets, part.classes) for part in sets)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(arguments.seed))
    halves = train.subset(order).halves(torch.Generator().manual_seed(arguments.seed))
    names = {side: list(train.class_names)[chosen] for side, chosen in CLASSES.items()}
    own = {side: half.of_classes(names[side]) for side, half in zip("ab", halves, strict=True)}
    return own, {side: test.of_classes(names[side]) for side in "ab"}


def train_alone(arguments: argparse.Namespace, name: str, dataset: tc.ArrayDataset) -> Part:
    space = tc.CompatSpace(128)
    torch.manual_seed(arguments.seed)
    extractor = tc.create_extractor(name, space, img_size=32)
    head = tc.TaskHead(space, dataset.class_names)
    config = tc.TrainConfig(
        epochs=arguments.epochs, batch_size=128, learning_rate=3e-3, random_crop=4, random_flip=True,
        seed=arguments.seed, head_weight_decay=0.05, weight_decay=0.05,
    )  # fmt: skip
    tc.fit(space, [tc.Member(name, extractor, head, dataset)], config)
    space.finalize(reference=extractor.digest())
    return extractor.eval(), head.eval()


def read(folder: Path) -> Part:
    return tc.CompatExtractor.from_pretrained(folder / "extractor"), tc.TaskHead.from_pretrained(folder / "head")


@torch.no_grad()
def pooled(extractor: tc.CompatExtractor, images: torch.Tensor) -> torch.Tensor:
    batches = images.split(EVALUATION_BATCH)
    return torch.cat([extractor.backbone(extractor.preprocess(batch)) for batch in batches])


def labelled(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, expected: torch.Tensor) -> float:
    scores = []
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged at 1000 steps
            scores.append(model.fit(train.numpy(), labels.numpy()).score(test.numpy(), expected.numpy()))
    return max(scores)


def cell(arguments: argparse.Namespace, joining: Part, other: Part, pool: tc.ArrayDataset, test: tc.ArrayDataset):
    """Yields rows."""
    extractor, (reference, head) = joining[0], other
    names = {"backbone": extractor.architecture, "head_of": reference.architecture}
    features, test_features = pooled(extractor, pool.images), pooled(extractor, test.images)
    ceiling = labelled(features, pool.labels, test_features, test.labels)
    native = tc.recombination_matrix({"": reference}, {"": head}, test).accuracy[0, 0]
    yield {**names, "images": len(pool), "variant": "ceiling", "accuracy": ceiling}
    yield {**names, "images": 0, "variant": "head's own extractor", "accuracy": native, "share": native / ceiling}
    for size in arguments.sizes:
        draws = 1 if size >= len(pool) else arguments.draws
        results: dict[str, list[float]] = {}
        for draw in range(draws):
            chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(draw))[:size]
            part = pool.subset(chosen)
            for variant, options in VARIANTS.items():
                joined = tc.join(
                    reference.space, extractor.backbone.model, part.images, reference=reference, heads=[head],
                    img_size=32, **options,
                )  # fmt: skip
                with torch.no_grad():
                    predicted = head(joined.interface(test_features)).argmax(dim=1)
                results.setdefault(variant, []).append((predicted == test.labels).double().mean().item())
            score = labelled(features[chosen], part.labels, test_features, test.labels) if draws > 1 else ceiling
            results.setdefault("with labels", []).append(score)
        for variant, values in results.items():
            mean = statistics.fmean(values)
            spread = statistics.stdev(values) if draws > 1 else 0.0
            row = {"images": min(size, len(pool)), "variant": variant, "accuracy": mean, "spread": spread}
            yield {**names, **row, "share": mean / ceiling, "draws": draws}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="root of CIFAR-10 as torchvision stores it")
    parser.add_argument("--folders", nargs=2, type=Path, help="trained networks A and B; trained here if left out")
    parser.add_argument("--backbones", nargs=2, default=["resnet18", "regnetx_002"])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--sizes", nargs="+", type=int, default=[300, 1000, 25_000])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the CPU; PyTorch's choice if left out")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    own, tests = load(arguments)
    if arguments.folders is None:
        parts = {
            side: train_alone(arguments, name, own[side]) for side, name in zip("ab", arguments.backbones, strict=True)
        }
    else:
        parts = {side: read(folder) for side, folder in zip("ab", arguments.folders, strict=True)}
    for joining, other in ("ba", "ab"):
        for row in cell(arguments, parts[joining], parts[other], own[other], tests[other]):
            if arguments.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{row['backbone']:>16} under {row['head_of']:<16} {row['images']:>6} {row['variant']:<24}"
                    f" {row['accuracy']:.4f} ± {row.get('spread', 0):.4f} {row.get('share', 1):6.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
