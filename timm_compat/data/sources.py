"""Data sets by name: included ones, your own files, those of torchvision, Hugging Face and WebDataset."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from timm_compat.data.array_files import load_digits, load_npz
from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.image_files import load_folder, load_images
from timm_compat.data.labelled import LabelledSet
from timm_compat.data.tar_shards import load_shards
from timm_compat.data.timm_sets import load_hugging_face, load_torch
from timm_compat.data.torchvision_sets import NAMES as TORCHVISION_NAMES
from timm_compat.data.torchvision_sets import load_torchvision
from timm_compat.errors import ConfigError, DataError
from timm_compat.seeding import generator

OWN = ("digits", "folder", "images", "npz")
PREFIXES = ("hfds", "torch", "wds")
_FROM_FILES = ("folder", "images", "npz", "torch/", "wds/")  # as are torchvision's

# What streams only, and which names give the same images in any order.
_STREAMED = {
    "hfids": "hfds/... reads the same set with random access",
    "tfds": "write the images into one folder per class and load 'folder', or find the set on the Hub for hfds/...",
}
_PART = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?/([0-9]{1,6})")

_TORCHVISION = {name.lower(): name for name in TORCHVISION_NAMES}

Images = TypeVar("Images", bound=LabelledSet)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    rename: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    part: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    in_chans: int | None = None,
    skip_corrupt: bool = False,
) -> ArrayDataset | ImageDataset:
    """A labelled data set: small images of one size in memory, others decoded on demand.

    Nothing is downloaded, except by the package ``datasets`` for "hfds/...".

    Args:
        name: "digits" (8 x 8, included); "folder" (one folder per class in ``root``, or in the split's folder);
            "images" (every image below ``root``, without labels); "npz" (``root`` is a file of ``images``, ``labels``
            and perhaps ``class_names``); a torchvision set such as "CIFAR10" or "Flowers102", in any case; or, as in
            timm, with a prefix: "hfds/owner/name" (Hugging Face), "torch/..." (timm's choice of torchvision), "wds/..."
            (tar shards in ``root``).
        root: folder or file where the images are; for "hfds/..." the cache, if any.
        split: "train", "test" or any other that the set has; for a folder or file without splits, "train" and "all" are
            the whole. Folders of splits are found in any case and under usual names (``Training_set``, ``data/val``).
        rename: new names of classes by old ones, to match those of another data set.
        classes: names of the classes to keep; labels then count in this order.
        part: "2/5" for the second of five disjoint random parts, which ``seed`` determines; "1-4/5" for the first
            four. Which images belong to a part does not depend on ``classes``.
        limit: keep at most this many images of what part and classes leave, drawn at random.
        seed: for parts and limit.
        in_chans: 1 or 3: grey images are repeated, colour images converted to grey. If None, as they are (files are
            decoded in colour).
        skip_corrupt: see ``ImageDataset``.

    Raises:
        ConfigError: an unknown name, a split that the set does not have, or an argument out of range.
        DataError: images are missing, damaged or without labels; an unknown class; nothing is left.
        MissingExtraError: "hfds/..." without the package ``datasets``.

    Example:
        >>> data = tc.data.load_dataset("digits", split="train", classes=["3", "8"], limit=100)
        >>> len(data), data.class_names
        (100, ('3', '8'))
    """
    selected = parse_part(part)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: expected at least 1, got {limit}")
    dataset = _load(name, None if root is None else Path(root).expanduser(), split, skip_corrupt)
    if in_chans is not None:
        dataset = dataset.with_channels(in_chans)
    if rename:
        dataset = dataset.renamed(rename)
    return _select(dataset, selected, classes, limit, seed)


def _load(name: str, root: Path | None, split: str, skip: bool) -> ArrayDataset | ImageDataset:
    plain = name.lower()
    prefix, slash, _ = plain.partition("/")
    kind = prefix + slash
    if kind == "hfds/":
        return load_hugging_face(f"hfds/{name[len('hfds/') :]}", root, split, skip_corrupt=skip)
    if kind == "digits":
        return load_digits(split)
    if kind in _FROM_FILES or plain in _TORCHVISION:
        if root is None:
            raise ConfigError(f"root: expected the folder or file of {name}, got none")
        return _load_files(name, kind, root, split, skip)
    if slash and prefix in _STREAMED:
        raise DataError(f"{name}: expected a set that can be read in any order, got a stream; {_STREAMED[prefix]}")
    choices = {own: own for own in OWN} | _TORCHVISION | {f"{known}/": f"{known}/..." for known in PREFIXES}
    close = difflib.get_close_matches(plain, choices, n=3) or list(choices)
    raise ConfigError(f"data set: expected {' or '.join(choices[choice] for choice in close)}, got {name!r}")


def _load_files(name: str, kind: str, root: Path, split: str, skip: bool) -> ArrayDataset | ImageDataset:
    if kind == "npz":
        return load_npz(root, split)
    if kind == "wds/":
        return load_shards(root, split, skip_corrupt=skip)
    if not root.is_dir():
        raise DataError(f"{name}: expected a folder {root}, got {'a file' if root.exists() else 'nothing there'}")
    if kind == "torch/":
        return load_torch(name.lower(), root, split, skip_corrupt=skip)
    if kind == "folder":
        return load_folder(root, split, skip_corrupt=skip)
    if kind == "images":
        return load_images(root, split, skip_corrupt=skip)
    return load_torchvision(_TORCHVISION[name.lower()], root, split, skip_corrupt=skip)


def parse_part(part: str | None) -> tuple[range, int] | None:
    """Numbers of the parts that are taken, from 0, and how many there are: "2/5" is (1,) of 5, "1-4/5" the first four.

    Raises:
        ConfigError: something else.
    """
    if part is None:
        return None
    parted = _PART.fullmatch(part) if isinstance(part, str) else None
    first, last, count = (int(number or parted[1]) for number in parted.groups()) if parted else (0, 0, 0)
    if not 1 <= first <= last <= count:
        raise ConfigError(f'part: expected such as "2/5", the second of five, or "1-4/5", the first four, got {part!r}')
    return range(first - 1, last), count


def _select(
    dataset: Images, part: tuple[range, int] | None, classes: Sequence[str] | None, limit: int | None, seed: int
) -> Images:
    if part is not None:
        numbers, count = part
        order = _shuffled(len(dataset), seed, "part")
        dataset = dataset.subset(torch.cat([order[number::count] for number in numbers]).sort().values)
    if classes is not None:
        dataset = dataset.of_classes(classes)
    if limit is not None:
        dataset = dataset.subset(_shuffled(len(dataset), seed, "limit")[:limit].sort().values)
    if not len(dataset):
        raise DataError("data set: expected at least one image, got none that part and classes leave")
    return dataset


def _shuffled(count: int, seed: int, use: str) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "data set", use))
