#!/usr/bin/env python3
"""Measure joins between real pretrained classifiers: heads of one network on another, by classes, by photos, by both.

    .venv/bin/python scripts/study_pretrained.py WEIGHTS PHOTOS --output runs/pretrained

WEIGHTS holds safetensors of timm's models over ImageNet, ``tf_efficientnet_lite0.safetensors`` ... PHOTOS holds photos:
the folder ``imagenet_sample`` with one photo a class, in the order of their names, and any number of others, such as
``caltech101`` with ``train/CLASS/`` and ``test/CLASS/``, or ``pacs`` with ``DOMAIN/train/CLASS/`` and so on. Features
are computed once (about 50 ms a photo and network on one CPU thread) and kept in the output folder, so that a run that
was stopped goes on. The table is printed, and written to ``pretrained.md`` there.
"""

import argparse
import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from origin import commit
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from timm_compat.evaluation.post_hoc import least_squares, procrustes
from timm_compat.joining.closed_form import Centre, ClassRows, ClosedForm
from timm_compat.methods.logistic import fit_logistic
from timm_compat.methods.ridge import Moments
from timm_compat.models.classifier import Classifier, open_classifier
from timm_compat.models.typical import typical_mean

BATCH, IMAGENET = 4, "imagenet_sample"  # small batches stay in the processor's cache, and in memory that is reused
DRAWS = 3
Linear = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Photos:
    """Features (N, F) of one network, labels (N,), and which photos are for training."""

    features: Tensor
    labels: Tensor
    train: Tensor


def listed(folder: Path) -> list[tuple[Path, int, bool]]:
    """Files of a set with label and whether they are for training."""
    if folder.name == IMAGENET:
        return [(file, number, True) for number, file in enumerate(sorted(folder.glob("*.jpg")))]
    roots = [folder] if (folder / "train").is_dir() else sorted(path for path in folder.iterdir() if path.is_dir())
    names = sorted({path.name for root in roots for path in (root / "train").iterdir()})
    return [
        (file, names.index(file.parent.name), part == "train")
        for root, part in itertools.product(roots, ("train", "test"))
        for file in sorted((root / part).glob("*/*"))
    ]


@torch.inference_mode()
def photos(name: str, weights: Path, folder: Path, kept: Path) -> Photos:
    """One pass of a plain timm model with timm's own transform, or what an earlier run kept of it."""
    file = kept / f"{name}_{folder.name}.safetensors"
    if not file.exists():
        model = timm.create_model(name).eval()
        model.load_state_dict(load_file(weights / f"{name}.safetensors"))
        transform = create_transform(**resolve_model_data_config(model), is_training=False)
        samples, chunks = listed(folder), []
        for start in range(0, len(samples), BATCH):
            images = [transform(Image.open(path).convert("RGB")) for path, _, _ in samples[start : start + BATCH]]
            chunks.append(model.forward_head(model.forward_features(torch.stack(images)), pre_logits=True))
        _, labels, train = zip(*samples, strict=True)
        tensors = {"features": torch.cat(chunks), "labels": torch.tensor(labels), "train": torch.tensor(train)}
        save_file(tensors, file)
    return Photos(**load_file(file))


@dataclass(frozen=True)
class Network:
    """A classifier, its photos by set, the heads trained on them, and its features' mean without images."""

    name: str
    classifier: Classifier
    sets: dict[str, Photos]
    heads: dict[str, Linear]
    mean: Tensor

    @classmethod
    def of(cls, name: str, weights: Path, folders: list[Path], kept: Path) -> "Network":
        """Heads are logistic regressions on a set's training photos; ImageNet's is the classifier."""
        classifier = open_classifier(name, weights=weights / f"{name}.safetensors")
        sets = {folder.name: photos(name, weights, folder, kept) for folder in folders}
        heads = {}
        for key, own in sets.items():
            if key == IMAGENET:
                heads[key] = (classifier.weight.float(), classifier.bias.float())
                continue
            draw = torch.Generator().manual_seed(0)
            features, labels = own.features[own.train].clone(), own.labels[own.train]
            fit = fit_logistic(features, labels, int(labels.max()) + 1, generator=draw)
            heads[key] = (fit.weight, fit.bias)
        mean = typical_mean(classifier.backbone)
        assert mean is not None
        return cls(name, classifier, sets, heads, mean)


def accuracy(head: Linear, images: Photos, linear: Linear | None = None, without: Tensor | None = None) -> float:
    """Of a head on test photos (all photos where a set has none), through a map; ``without`` leaves photos out."""
    chosen = ~images.train if bool((~images.train).any()) else images.train.clone()
    if without is not None:
        chosen[without] = False
    features = images.features[chosen]
    if linear is not None:
        features = features @ linear[0].float().T + linear[1].float()
    return float(((features @ head[0].T + head[1]).argmax(dim=1) == images.labels[chosen]).float().mean())


def ways(new: Network, old: Network, pool: tuple[str, Tensor] | None) -> dict[str, Linear]:
    """Maps from the new network's features to the old one's, by how they were found."""
    rows = ClassRows(*(part.classifier.weight - part.classifier.weight.mean(dim=0) for part in (new, old)))
    # The space's coordinates are centred, as ``split`` centres them; heads here read uncentred features.
    centre = Centre(new.mean.double(), torch.zeros(len(old.mean)).double())
    if pool is None:
        weight, bias = ClosedForm(None, rows, centre).map()
        return {"joined": (weight, bias + old.mean)}
    x, y = (network.sets[pool[0]].features[pool[1]] for network in (new, old))
    sums = Moments(x.shape[1], y.shape[1])
    sums.add(x, y - old.mean)
    weight, bias = ClosedForm(sums, rows, centre).map()
    others = {"ridge": least_squares(x, y), "Procrustes": procrustes(x, y)}
    return {"joined": (weight, bias + old.mean)} | {name: (map_.weight, map_.bias) for name, map_ in others.items()}


def lines(new: Network, old: Network, pools: list[tuple[str, int]]) -> list[str]:
    """Rows of the table for one pair: share of a head retrained on the new network, and accuracy."""
    sets = list(new.sets)
    retrained = {key: accuracy(new.heads[key], new.sets[key]) for key in sets}
    native = {key: accuracy(old.heads[key], old.sets[key]) for key in sets}
    title = f"{new.name} under {old.name}'s heads"
    table = [row(title, "", "the head on its own network", native, retrained)]
    table.append(row("", "", "head retrained with labels", retrained, retrained))
    table.append(row("", "no map", "unmapped", {k: accuracy(old.heads[k], new.sets[k]) for k in sets}, retrained))
    joined = ways(new, old, None)["joined"]
    table.append(row("", "none", "joined", {k: accuracy(old.heads[k], new.sets[k], joined) for k in sets}, retrained))
    for name, count in pools:
        found: dict[str, dict[str, list[float]]] = {}
        for seed in range(DRAWS):
            places = new.sets[name].train.nonzero().flatten()
            drawn = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count]]
            for way, linear in ways(new, old, (name, drawn)).items():
                for key in sets:
                    without = drawn if key == name == IMAGENET else None
                    cell = accuracy(old.heads[key], new.sets[key], linear, without)
                    found.setdefault(way, {}).setdefault(key, []).append(cell)
        for way, cells in found.items():
            means = {key: statistics.mean(values) for key, values in cells.items()}
            table.append(row("", f"{name} {count}", way, means, retrained))
    return table


def row(pair: str, pool: str, way: str, found: dict[str, float], retrained: dict[str, float]) -> str:
    """Accuracy and share of a retrained head, for every set."""
    cells = [f"{value:.3f} ({value / retrained[key]:.0%})" for key, value in found.items()]
    return "| " + " | ".join([pair, pool, way, *cells]) + " |"


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", help="NEW:OLD, such as tf_efficientnet_lite0:tf_efficientnet_lite2")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    names = sorted(file.stem for file in options.weights.glob("*.safetensors"))
    pairs = [tuple(pair.split(":")) for pair in options.pairs or map(":".join, itertools.permutations(names, 2))]
    folders = sorted(path for path in options.photos.iterdir() if path.is_dir())
    used = dict.fromkeys(itertools.chain.from_iterable(pairs))
    networks = {name: Network.of(name, options.weights, folders, options.output) for name in used}
    others = [folder.name for folder in folders if folder.name != IMAGENET]
    pools = [(IMAGENET, 300), *((name, count) for name in others for count in (30, 750))]
    head = "| pair | unlabelled photos | way | " + " | ".join(folder.name for folder in folders) + " |"
    text = [head, "| --- | --- | --- |" + " ---: |" * len(folders)]
    for new, old in pairs:
        text += lines(networks[new], networks[old], pools)
        print("\n".join(text), flush=True)
    note = f"Commit {commit()}, {DRAWS} draws of the photos, timm {timm.__version__}, torch {torch.__version__}."
    (options.output / "pretrained.md").write_text("\n".join([*text, "", note, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
