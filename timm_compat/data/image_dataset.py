"""Labelled images that are decoded on demand."""

import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from timm_compat.data.labelled import LabelledSet, check_labels, checked_names
from timm_compat.errors import ConfigError, DataError, ImageError

MODES = {1: "L", 3: "RGB"}  # Pillow's name for images of so many channels

# What Pillow and the sources raise over a file that is damaged, cut off, missing or no image.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

_SIXTEEN_BITS = ("PNG", "PPM")  # formats that have no more, though Pillow may hold them in 32

_FILE_LISTS = ("samples", "_samples", "_image_files", "_images", "imgs", "data")  # where torchvision keeps its paths

_logger = logging.getLogger(__name__)


class ImageSource(Protocol):
    """A map-style set of (PIL image, label), such as those of torchvision."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Found:
    """A readable image of a set.

    Attributes:
        image: in the set's mode.
        skipped: numbers, in the source, of the unreadable images whose place it takes.
    """

    image: Image.Image
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class ImageDataset(LabelledSet):
    """Labelled images of a map-style source, decoded on demand.

    Args:
        source: items are (PIL image, label); its labels are not used.
        indices: (N,), int64, the source's images that belong to the set.
        labels: (N,), int64, indices into ``class_names``.
        class_names: K names.
        mode: "RGB" or "L"; images are converted to it.
        skip_corrupt: whether the next readable image of the same class takes the place of one that cannot be
            decoded. A warning is logged once for each.

    Raises:
        ConfigError: another mode.
        DataError: indices, labels or class names that do not fit.

    Example:
        >>> from PIL import Image
        >>> from pathlib import Path
        >>> for name in ("cat", "dog"):
        ...     Path("photos", name).mkdir(parents=True)
        ...     Image.new("RGB", (40, 30)).save(f"photos/{name}/0.jpg")
        >>> data = tc.data.load_dataset("folder", "photos")
        >>> type(data).__name__, data.class_names
        ('ImageDataset', ('cat', 'dog'))
    """

    source: ImageSource
    indices: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    mode: str = "RGB"
    skip_corrupt: bool = False
    _reported: set[int] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES.values():
            raise ConfigError(f"mode: expected one of {', '.join(MODES.values())}, got {self.mode!r}")
        if self.indices.ndim != 1 or self.indices.dtype != torch.int64:
            raise DataError(f"indices: expected (N,) of int64, got {tuple(self.indices.shape)}, {self.indices.dtype}")
        outside = (self.indices < 0) | (self.indices >= len(self.source))
        if outside.any():
            raise DataError(f"indices: expected 0 to {len(self.source) - 1}, got {int(self.indices[outside][0])}")
        object.__setattr__(self, "class_names", checked_names(self.class_names))
        check_labels(self.labels, len(self.indices), self.class_names)

    @classmethod
    def from_source(
        cls,
        source: ImageSource,
        labels: Tensor | Sequence[int],
        class_names: Sequence[str],
        *,
        mode: str = "RGB",
        skip_corrupt: bool = False,
    ) -> "ImageDataset":
        """All images of a source, with labels (N,) into ``class_names``."""
        numbers = torch.as_tensor(labels).to(torch.int64)
        return cls(source, torch.arange(len(source)), numbers, tuple(class_names), mode, skip_corrupt)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(index)

    def _pick(self, chosen: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Self:
        return replace(self, indices=self.indices[chosen], labels=labels, class_names=class_names)

    @property
    def channels(self) -> int:
        """Number C of an image's channels: 3 in mode "RGB", 1 in "L"."""
        return next(count for count, mode in MODES.items() if mode == self.mode)

    @property
    def form(self) -> Hashable:
        """The mode; a set of its own where others take the place of damaged images, as these follow from its labels."""
        return self.mode, id(self) if self.skip_corrupt else None

    def image_keys(self) -> list[Hashable]:
        """The path of each image that is a file, else its place in the source."""
        numbers = self.indices.tolist()
        names = [name_of(self.source, number) for number in numbers]
        return [
            os.path.abspath(name) if os.path.isfile(name) else (id(self.source), number)
            for name, number in zip(names, numbers, strict=True)
        ]

    @classmethod
    def collected(cls, images: Sequence[tuple[Self, int]], class_name: str) -> Self:
        """As ``LabelledSet`` says."""
        entries = _Entries([(dataset.source, int(dataset.indices[index])) for dataset, index in images])
        first, numbers = images[0][0], torch.arange(len(images))
        return cls(entries, numbers, torch.zeros_like(numbers), (class_name,), first.mode, first.skip_corrupt)

    def with_channels(self, count: int) -> Self:
        """The same images in grey (1) or colour (3).

        Raises:
            ConfigError: another number.
        """
        return replace(self, mode=mode_of(count))

    def open(self, index: int) -> Image.Image:
        """The image at a position, decoded and in the set's mode; ``skip_corrupt`` does not matter here.

        Raises:
            DataError: it cannot be decoded; the message names the file.
        """
        number = int(self.indices[index])
        try:
            image: Image.Image = self.source[number][0]
            return convert(image, self.mode)
        except UNREADABLE as error:
            raise DataError(
                f"{name_of(self.source, number)}: expected an image that can be decoded, got {error}; "
                "repair or remove it, or set skip_corrupt (on the command line --skip-corrupt)"
            ) from error

    def find(self, index: int) -> Found:
        """The image at a position or, with ``skip_corrupt``, the next readable one of its class; nothing is logged.

        Raises:
            DataError: it cannot be decoded; with ``skip_corrupt``, no image of its class can.
        """
        try:
            return Found(self.open(index))
        except DataError as error:
            if not self.skip_corrupt:
                raise
            last = error
        # Of its class, so that the set's labels hold for what is delivered.
        others = (self.labels == self.labels[index]).nonzero().flatten()
        skipped = [int(self.indices[index])]
        for place in torch.cat([others[others > index], others[others < index]]).tolist():
            try:
                return Found(self.open(place), tuple(skipped))
            except DataError as error:
                skipped.append(int(self.indices[place]))
                last = error
        name = self.class_names[int(self.labels[index])]
        raise DataError(
            f"class {name!r}: expected an image that can be decoded, got none among {len(others)}; the last: {last}"
        )

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image at a position, or what takes its place as in ``find``, and its label; what is skipped is logged.

        Raises:
            DataError: as in ``find``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        found = self.find(index)
        self.report(found.skipped)
        return found.image, int(self.labels[index])

    def digest(self) -> str:
        """SHA-256 that identifies the images of this set and their order.

        Of files it knows path, size and time of change; images that are no files of their own are decoded for it.
        """
        # A replacement for an unreadable image is looked for by label.
        labels = self.labels.tolist() if self.skip_corrupt else None
        digest = hashlib.sha256(f"{self.mode} {labels}".encode())
        for number in self.indices.tolist():
            # A file's name may be bytes that are no text.
            digest.update(f"\n{_facts(self.source, number)}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def image_digests(self) -> list[bytes]:
        """SHA-256 by which ``digest`` knows each image; with ``skip_corrupt`` of the whole set and the place in it."""
        if self.skip_corrupt:  # another image may stand in
            whole = self.digest()
            return [hashlib.sha256(f"{whole} {place}".encode()).digest() for place in range(len(self))]
        facts = (f"{self.mode} {_facts(self.source, number)}" for number in self.indices.tolist())
        return [hashlib.sha256(fact.encode("utf-8", "surrogateescape")).digest() for fact in facts]

    def report(self, skipped: Sequence[int]) -> None:
        """Log a warning for each of these images of the source that has not been named yet."""
        for number in skipped:
            if number not in self._reported:
                self._reported.add(number)
                _logger.warning("%s cannot be decoded; skipped", name_of(self.source, number))


@dataclass(frozen=True)
class _Entries:
    """Images of several sources, as one."""

    entries: list[tuple[ImageSource, int]]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        source, number = self.entries[index]
        return source[number][0], 0

    def filename(self, index: int) -> str:
        """For messages."""
        source, number = self.entries[index]
        return name_of(source, number)


def _facts(source: ImageSource, number: int) -> str:
    """What changes when an image of a source does: its file's size and time, else its pixels."""
    own = getattr(source, "digest", None)
    if callable(own):
        return str(own(number))
    name = name_of(source, number)
    if os.path.isfile(name):
        status = os.stat(name)
        return f"{os.path.abspath(name)} {status.st_size} {status.st_mtime_ns}"
    try:
        image = source[number][0]
        return f"{image.mode} {image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"
    except UNREADABLE:
        return "unreadable"


def mode_of(channels: int) -> str:
    """Pillow's mode for a number of channels.

    Raises:
        ConfigError: neither 1 nor 3.
    """
    if channels not in MODES:
        raise ConfigError(f"channels: expected 1 (grey) or 3 (colour), got {channels}")
    return MODES[channels]


def read_image(file: str | IO[bytes]) -> Image.Image:
    """The image in a file, decoded, in its own mode."""
    with Image.open(file) as image:
        image.load()
        return image


def convert(image: Image.Image, mode: str) -> Image.Image:
    """A decoded image in a mode; transparency is dropped, of 16 bits per pixel the upper 8 are kept.

    Whatever reads images goes through here: training, evaluation and predictions see the same pixels.

    Raises:
        ImageError: pixels whose range is not known (32-bit integers, floating point).
    """
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow would cut them off at 255
    elif image.mode in ("I", "F"):
        raise ImageError(
            f"expected pixels of 8 or 16 bits, got Pillow's mode {image.mode}, whose range is not known; scale and "
            "save the image as 8-bit"
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for, by a warning, before a palette's transparency goes
    return image if image.mode == mode else image.convert(mode)


def name_of(source: ImageSource, number: int) -> str:
    """The path of a source's image where the source has one, else its number."""
    find = getattr(source, "filename", None)
    if callable(find):
        return str(find(number))
    for attribute in _FILE_LISTS:
        entries = getattr(source, attribute, None)
        if isinstance(entries, Sequence) and number < len(entries):
            entry = entries[number]
            path = entry[0] if isinstance(entry, tuple) and entry else entry
            if isinstance(path, str | os.PathLike):
                return os.fspath(path)
    return f"image {number} of {type(source).__name__}"
