"""Networks over ImageNet on photos of several sets: features computed once and kept, and heads trained on them."""

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from timm_compat.evaluation.post_hoc import LinearMap
from timm_compat.methods.logistic import fit_logistic
from timm_compat.models.classifier import open_classifier
from timm_compat.models.typical import typical_mean

BATCH, IMAGENET = 4, "imagenet_sample"  # small batches stay in the processor's cache, and in memory that is reused


@dataclass(frozen=True)
class Source:
    """Where everything lies.

    Attributes:
        weights: folder of safetensors of timm's models over ImageNet, ``NAME.safetensors``.
        photos: folder of sets: ``imagenet_sample`` with one photo a class, in the order of their names, and any number
            of others with ``train/CLASS/`` and ``test/CLASS/``, in folders of their domains where they have such.
        kept: folder for features and heads.
    """

    weights: Path
    photos: Path
    kept: Path

    def networks(self) -> list[str]:
        """Names of the networks."""
        return sorted(file.stem for file in self.weights.glob("*.safetensors"))

    def sets(self) -> list[Path]:
        """Folders of the sets."""
        return sorted(path for path in self.photos.iterdir() if path.is_dir())


@dataclass(frozen=True)
class Sample:
    """A photo, its label, the kind of photos that it is one of (a set, or a domain of one), and its use."""

    file: Path
    label: int
    kind: str
    is_train: bool


@dataclass(frozen=True)
class Photos:
    """Features (N, F) of one kind of photos in one network, labels (N,), and which are to train heads and to join."""

    features: Tensor
    labels: Tensor
    train: Tensor

    def places(self, part: str) -> Tensor:
        """Indices of the photos to "train" or to "test"; all where a set has no test photos."""
        chosen = self.train if part == "train" or bool(self.train.all()) else ~self.train
        return chosen.nonzero().flatten()


@dataclass(frozen=True)
class Network:
    """A classifier over ImageNet.

    Attributes:
        name: of the timm model.
        weight: (1000, F) of its classifier, float64.
        mean: (F,), where its features lie without images; None where nothing tells it.
        photos: by kind.
        heads: by kind, on its features; ImageNet's is its classifier.
        optimism: by kind, of the heads: accuracy on photos that they learned from, less that in cross-validation.
        standard: by how logits are scaled and by kind, heads on the centred ImageNet logits.
    """

    name: str
    weight: Tensor
    mean: Tensor | None
    photos: dict[str, Photos]
    heads: dict[str, LinearMap]
    optimism: dict[str, float]
    standard: dict[str, dict[str, LinearMap]]


@functools.cache
def listed(folder: Path) -> tuple[Sample, ...]:
    """All photos of a set, always in the same order."""
    if folder.name == IMAGENET:
        files = sorted(folder.glob("*.jpg"))
        return tuple(Sample(file, number, IMAGENET, True) for number, file in enumerate(files))
    roots = [folder] if (folder / "train").is_dir() else sorted(path for path in folder.iterdir() if path.is_dir())
    names = sorted({path.name for root in roots for path in (root / "train").iterdir()})
    return tuple(
        Sample(file, names.index(file.parent.name), root.name, part == "train")
        for root, part in itertools.product(roots, ("train", "test"))
        for file in sorted((root / part).glob("*/*"))
    )


def counts(source: Source) -> dict[str, dict[str, int]]:
    """By kind, how many photos there are to train and to test."""
    found: dict[str, dict[str, int]] = {}
    for sample in itertools.chain.from_iterable(map(listed, source.sets())):
        parts = found.setdefault(sample.kind, {"train": 0, "test": 0})
        parts["train" if sample.is_train else "test"] += 1
    return found


@functools.cache
def side(source: Source, name: str) -> int | None:
    """Pixels of a network's images, as its weights file tells; None for timm's own."""
    with safe_open(source.weights / f"{name}.safetensors", "pt") as file:
        told = (file.metadata() or {}).get("img_size")
    return int(told) if told else None


@functools.cache
def network(source: Source, name: str) -> Network:
    """A network with everything that is computed once."""
    size = side(source, name)
    classifier = open_classifier(name, weights=source.weights / f"{name}.safetensors", img_size=size)
    photos: dict[str, Photos] = {}
    for folder in source.sets():
        found, kinds = _features(source, name, folder), [sample.kind for sample in listed(folder)]
        for kind in dict.fromkeys(kinds):
            chosen = torch.tensor([one == kind for one in kinds])
            photos[kind] = Photos(*(found[key][chosen] for key in ("features", "labels", "train")))
    weight, bias = classifier.weight, classifier.bias
    heads = _heads(source.kept / "heads" / f"{name}.safetensors", photos, LinearMap(weight, bias))
    own = {kind: LinearMap(heads[f"features {kind} weight"], heads[f"features {kind} bias"]) for kind in photos}
    standard = {
        space: {
            kind: LinearMap(heads[f"{space} {kind} weight"], heads[f"{space} {kind} bias"])
            for kind in photos
            if kind != IMAGENET
        }
        for space in STANDARD
    }
    optimism = {kind: float(heads[f"optimism {kind}"]) for kind in photos if kind != IMAGENET}
    return Network(name, weight, typical_mean(classifier.backbone), photos, own, optimism, standard)


def _transform(model: Any, name: str, size: int | None) -> Any:
    config = resolve_model_data_config(model)
    if size is not None:
        config["input_size"] = (3, size, size)
    return create_transform(**config, is_training=False)


@torch.inference_mode()
def _features(source: Source, name: str, folder: Path) -> dict[str, Tensor]:
    """One pass of a plain timm model with timm's own transform, or what an earlier run kept of it."""
    file = source.kept / "features" / f"{name}_{folder.name}.safetensors"
    samples = listed(folder)
    if not file.exists():
        size = side(source, name)
        fixed = {} if size is None or not hasattr(timm.create_model(name), "patch_embed") else {"img_size": size}
        model = timm.create_model(name, **fixed).eval()
        model.load_state_dict(load_file(source.weights / f"{name}.safetensors"))
        transform, chunks = _transform(model, name, size), []
        for start in range(0, len(samples), BATCH):
            images = [transform(Image.open(one.file).convert("RGB")) for one in samples[start : start + BATCH]]
            chunks.append(model.forward_head(model.forward_features(torch.stack(images)), pre_logits=True))
        tensors = {
            "features": torch.cat(chunks),
            "labels": torch.tensor([one.label for one in samples]),
            "train": torch.tensor([one.is_train for one in samples]),
        }
        _save(tensors, file)
    found = load_file(file)
    if len(found["labels"]) != len(samples):
        raise SystemExit(f"{file}: expected features of {len(samples)} photos, got {len(found['labels'])}; delete it")
    return found


def centred(features: Tensor, classifier: LinearMap) -> Tensor:
    """ImageNet logits (N, 1000), centred over the classes: coordinates that need no reference."""
    logits: Tensor = classifier(features)
    return logits - logits.mean(dim=1, keepdim=True)


def normalized(features: Tensor, classifier: LinearMap) -> Tensor:
    """The same, every photo's logits brought to variance 1 over the classes."""
    logits = centred(features, classifier)
    return logits / logits.std(dim=1, keepdim=True)


STANDARD = {"centred logits": centred, "normalized logits": normalized}


@torch.no_grad()
def _heads(file: Path, photos: dict[str, Photos], classifier: LinearMap) -> dict[str, Tensor]:
    """Logistic regressions on the training photos of every kind, on features and on logits; kept."""
    old = load_file(file) if file.exists() else {}
    if old and all(kind == IMAGENET or f"optimism {kind}" in old for kind in photos):
        return old
    found: dict[str, Tensor] = {}
    for kind, own in photos.items():
        if kind == IMAGENET:
            head = LinearMap(classifier.weight.float(), classifier.bias.float())
            found |= {f"features {kind} weight": head.weight, f"features {kind} bias": head.bias}
            continue
        places, penalty = own.places("train"), None
        labels, features = own.labels[places], own.features[places]
        inputs = {"features": features} | {name: space(features, classifier) for name, space in STANDARD.items()}
        for name, rows in inputs.items():
            draw = torch.Generator().manual_seed(0)
            fit = fit_logistic(rows, labels, int(own.labels.max()) + 1, penalty=penalty, generator=draw)
            found |= {f"{name} {kind} weight": fit.weight, f"{name} {kind} bias": fit.bias}
            if fit.accuracies is not None:
                seen, unseen = fit.accuracies
                found[f"optimism {kind}"] = torch.tensor(seen - unseen)
            penalty = fit.penalty  # one choice for all three: what they differ in is the space
    _save(found, file)
    return found


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    """Whole or not at all: a run may be stopped at any time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in tensors.items()}, part)
    part.replace(file)
