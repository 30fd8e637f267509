"""Classify image files with a published or saved classifier: composed, fused, or an extractor and a head."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from typing_extensions import Unpack

from timm_compat.data.image_dataset import MODES, UNREADABLE, read_image
from timm_compat.data.listing import list_images
from timm_compat.data.transforms import inference_transform
from timm_compat.errors import ConfigError, DataError
from timm_compat.hub.loading import load
from timm_compat.models.composed import CompatModel, compose
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.storage.source import Where

BATCH_SIZE = 32


@dataclass(frozen=True)
class Classifier:
    """A model with what it needs to read files.

    Attributes:
        model: normalised images (B, C, H, W) to logits (B, K), in evaluation mode.
        class_names: K names.
        transform: from a PIL image to (C, H, W), normalised.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    transform: Any


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one file.

    Attributes:
        file: its path.
        classes: (name, probability in [0, 1]), likeliest first.
    """

    file: str
    classes: tuple[tuple[str, float], ...]


def open_classifier(location: str, head: str | None = None, **where: Unpack[Where]) -> Classifier:
    """Load a classifier from a folder or the Hub.

    Args:
        location: a composed or fused model; an extractor where ``head`` is given.
        head: a task head of the same space.
        **where: as ``from_pretrained``; a revision is the location's, the head's own is "main".

    Raises:
        ConfigError: a part is missing, or one too many.
        SpaceMismatchError: extractor and head do not fit.
        ComponentFileError, HubError: as ``from_pretrained``.
    """
    found: Any = load(location, **where)
    if isinstance(found, CompatExtractor):
        if head is None:
            raise ConfigError(f"{location}: expected a classifier, got an extractor; give it a head: --head ID")
        rest = where.copy()
        rest["revision"], rest["subfolder"] = None, ""
        found = compose(found, TaskHead.from_pretrained(head, **rest))
    elif head is not None:
        raise ConfigError(
            f"{location}: expected an extractor for the head {head!r}, got another component; drop --head"
        )
    if isinstance(found, CompatModel):
        return _classifier(found, found.class_names, found.extractor.data_config)
    if not isinstance(found, nn.Module) or isinstance(found, TaskHead):
        raise ConfigError(f"{location}: expected a classifier, got a {type(found).__name__}; see timm-compat compose")
    plain: Any = found
    config = timm.data.resolve_model_data_config(plain)
    return _classifier(plain, tuple(plain.pretrained_cfg["label_names"]), config)


def predict(classifier: Classifier, files: Sequence[Path], top: int = 5) -> Iterator[Prediction]:
    """Classes and probabilities of image files, in their order.

    Raises:
        ConfigError: ``top`` is no positive number.
        DataError: a file is no image that can be decoded.
    """
    if top < 1:
        raise ConfigError(f"top: expected a whole number of at least 1, got {top}")
    count = min(top, len(classifier.class_names))
    for start in range(0, len(files), BATCH_SIZE):
        chunk = files[start : start + BATCH_SIZE]
        images = torch.stack([_read(classifier, file) for file in chunk])
        with torch.inference_mode():
            shares = classifier.model(images).softmax(dim=1)
        for file, (values, places) in zip(chunk, zip(*shares.topk(count), strict=True), strict=True):
            names = [classifier.class_names[place] for place in places.tolist()]
            yield Prediction(str(file), tuple(zip(names, values.tolist(), strict=True)))


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


def _classifier(model: nn.Module, class_names: tuple[str, ...], data_config: dict[str, Any]) -> Classifier:
    channels = data_config["input_size"][0]
    if channels not in MODES:
        raise ConfigError(f"expected a model for images of 1 or 3 channels, got {channels}; call it from Python")
    return Classifier(model, class_names, inference_transform(data_config))


def _read(classifier: Classifier, file: Path) -> torch.Tensor:
    try:
        pixels: torch.Tensor = classifier.transform(read_image(str(file)))
    except UNREADABLE as error:
        raise DataError(f"{file}: expected an image, got something that cannot be decoded ({error})") from error
    return pixels
