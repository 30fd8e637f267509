"""Classify image files with published or saved classifiers: composed, fused, or an extractor and its heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from timm_compat.data.image_dataset import MODES, ImageDataset
from timm_compat.data.image_files import CLASS_NAME, ImageFiles
from timm_compat.data.listing import list_images
from timm_compat.data.raw_batches import LeftOut
from timm_compat.errors import ConfigError, DataError
from timm_compat.experiments.parts import named_source
from timm_compat.hub.loading import load
from timm_compat.models.composed import CompatModel, compose
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import DEFAULTS, Network, run_networks
from timm_compat.models.preprocess import Preprocess
from timm_compat.models.run_options import RunOptions
from timm_compat.storage.source import Where


@dataclass(frozen=True)
class Classifier:
    """What classifies raw images.

    Attributes:
        network: raw images to the logits of all heads side by side, (B, sum of K).
        class_names: K names of every head, by its name, in the order of the logits; a single head's name may be "".
        mode: of the PIL images, "RGB" or "L".
    """

    network: Network
    class_names: Mapping[str, tuple[str, ...]]
    mode: str


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one file.

    Attributes:
        file: its path.
        heads: by head's name, (class, probability in [0, 1]), likeliest first.
    """

    file: str
    heads: Mapping[str, tuple[tuple[str, float], ...]]


def open_classifier(location: str, heads: Sequence[str] = (), **where: Unpack[Where]) -> Classifier:
    """Load a classifier from a folder or the Hub.

    Args:
        location: a composed or fused model; an extractor where ``heads`` are given, or a composed model whose own head
            they join.
        heads: task heads of the same space, as "SOURCE" or "NAME=SOURCE".
        **where: as ``from_pretrained``; a revision is the location's, the heads' own is "main".

    Raises:
        ConfigError: a part is missing, or one too many.
        SpaceMismatchError: extractor and a head do not fit.
        ComponentFileError, HubError: as ``from_pretrained``.
    """
    found: Any = load(location, **where)
    rest = where.copy()
    rest["revision"], rest["subfolder"] = None, ""
    if isinstance(found, (CompatModel, CompatExtractor)):
        own = {named_source(location)[0]: found.head} if isinstance(found, CompatModel) else {}
        given = own | _heads(heads, tuple(own), rest)
        if not given:
            raise ConfigError(f"{location}: expected a classifier, got an extractor; give it a head: --head ID")
        extractor = found.extractor if isinstance(found, CompatModel) else found
        return _of_parts(extractor, given if len(given) > 1 else {"": next(iter(given.values()))})
    if heads:
        raise ConfigError(
            f"{location}: expected an extractor or a composed model for the head {heads[0]!r}, got another component; "
            "drop --head"
        )
    if not isinstance(found, nn.Module) or isinstance(found, TaskHead):
        raise ConfigError(f"{location}: expected a classifier, got a {type(found).__name__}; see timm-compat compose")
    plain: Any = found
    config = timm.data.resolve_model_data_config(plain)
    preprocess = Preprocess(config)
    network = Network(nn.ModuleList([preprocess, plain]), preprocess, config, plain)
    return _checked(network, {"": tuple(plain.pretrained_cfg["label_names"])})


def predict(
    classifier: Classifier,
    files: Sequence[Path],
    top: int = 5,
    *,
    options: RunOptions = DEFAULTS,
    left_out: LeftOut | None = None,
) -> Iterator[Prediction]:
    """Classes and probabilities of image files, in their order, as they come.

    Args:
        classifier: from ``open_classifier``.
        files: images.
        top: classes per image, of every head.
        options: device, batch size, precision, workers, progress.
        left_out: is told of every file that cannot be decoded (its index and the error), which then is left out; such
            a file is an error if None.

    Raises:
        ConfigError: ``top`` is no positive number.
        DataError: a file is no image that can be decoded.
    """
    if top < 1:
        raise ConfigError(f"top: expected an integer of at least 1, got {top}")
    labels = [0] * len(files)
    source = ImageFiles(list(files), labels)
    images = ImageDataset.from_source(source, labels, [CLASS_NAME], mode=classifier.mode)
    alone = (0, 1)  # every process predicts all files, like a command that is started several times
    for passed in run_networks([classifier.network], images, options, left_out=left_out, process=alone):
        shares = _shares(classifier, passed.outputs[0], top)
        for row, position in enumerate(passed.positions.tolist()):
            yield Prediction(str(files[position]), {name: found[row] for name, found in shares.items()})


def image_files(path: str | Path) -> list[Path]:
    """The file itself, or every image below a folder as in ``list_images``.

    Raises:
        DataError: there is none.
    """
    root = Path(path)
    found = list_images(root) if root.is_dir() else [root] if root.is_file() else []
    if not found:
        raise DataError(f"expected an image or a folder with images at {str(path)!r}, found none")
    return found


def _heads(sources: Sequence[str], taken: Sequence[str], where: Where) -> dict[str, TaskHead]:
    found: dict[str, TaskHead] = {}
    for word in sources:
        name, source = named_source(word)
        if name in found or name in taken:
            raise ConfigError(f"--head: expected every head's name once, got {name!r} twice; write NAME={source}")
        found[name] = TaskHead.from_pretrained(source, **where)
    return found


def _of_parts(extractor: CompatExtractor, heads: Mapping[str, TaskHead]) -> Classifier:
    model = compose(extractor, heads)

    def forward(images: Tensor) -> Tensor:
        return torch.cat(list(model(images).values()), dim=1)

    return _checked(Network(model, extractor.preprocess, extractor.data_config, forward), model.class_names)


def _checked(network: Network, class_names: Mapping[str, tuple[str, ...]]) -> Classifier:
    channels = network.data_config["input_size"][0]
    if channels not in MODES:
        raise ConfigError(f"expected a model for images of 1 or 3 channels, got {channels}; call it from Python")
    return Classifier(network, class_names, MODES[channels])


def _shares(classifier: Classifier, logits: Tensor, top: int) -> dict[str, list[tuple[tuple[str, float], ...]]]:
    """By head, every image's likeliest classes."""
    found = {}
    parts = logits.split([len(names) for names in classifier.class_names.values()], dim=1)
    for (head, names), part in zip(classifier.class_names.items(), parts, strict=True):
        values, places = (side.tolist() for side in part.softmax(dim=1).topk(min(top, len(names))))
        found[head] = [
            tuple((names[place], share) for place, share in zip(row, shares, strict=True))
            for row, shares in zip(places, values, strict=True)
        ]
    return found
