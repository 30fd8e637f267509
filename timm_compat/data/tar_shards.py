"""Data sets in WebDataset's form, tar files of images with their labels, with random access.

The shards are plain tar files, so an index of where each image begins is all that is needed; it is made once, by
reading the headers. (A. Aizman et al., "High performance I/O for large scale deep learning", 2019.)
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from PIL import Image

from timm_compat.data.image_dataset import ImageDataset, read_image
from timm_compat.data.listing import is_hidden, readable_extensions
from timm_compat.data.map_style import numbered
from timm_compat.errors import DataError

LABEL_SUFFIX = ".cls"
INFO_FILES = ("_info.json", "info.json")  # where timm looks for a set's splits

MOST_DIGITS = 18  # of a label: more than there may be classes, and less than int64 holds

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class _Sample:
    shard: Path
    offset: int
    size: int
    name: str
    label: int


class TarSource:
    """Images in tar files, at known places: a map-style source."""

    def __init__(self, samples: list[_Sample]) -> None:
        self.entries = samples

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        sample = self.entries[index]
        with open(sample.shard, "rb") as file:
            file.seek(sample.offset)
            return read_image(io.BytesIO(file.read(sample.size))), sample.label

    def digest(self, index: int) -> str:
        """What changes when the image does: the shard's time of change, and the place in it."""
        sample = self.entries[index]
        return f"{sample.shard.absolute()} {sample.shard.stat().st_mtime_ns} {sample.offset} {sample.size}"

    def filename(self, index: int) -> str:
        """Shard and member."""
        return f"{self.entries[index].shard}:{self.entries[index].name}"


def load_shards(root: Path, split: str, *, skip_corrupt: bool = False) -> ImageDataset:
    """A set of tar shards in a folder; class names are "0" to "K-1".

    Args:
        root: the shards' folder.
        split: a name that ``_info.json`` lists; or the shards' names, such as "train-{0000..0063}.tar"; or a word
            that they contain.
        skip_corrupt: see ``ImageDataset``.

    Raises:
        DataError: no shard, one that is no plain tar file, or an image without a label (a .cls file of a number).
    """
    shards = find_shards(root, split)
    samples = [sample for shard in shards for sample in _read_index(shard)]
    if not samples:
        raise DataError(f"{root}: expected images in {len(shards)} shards of {split!r}, got none")
    labels = torch.tensor([sample.label for sample in samples])
    return ImageDataset.from_source(TarSource(samples), labels, numbered(labels), skip_corrupt=skip_corrupt)


def find_shards(root: Path, split: str) -> list[Path]:
    """The tar files of a split.

    Raises:
        DataError: no folder, no shard, or one that is listed and missing.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder of tar shards, got {'a file' if root.exists() else 'nothing there'}"
        )
    if ".tar" in split:
        shards = [root / name for name in _expand(split.partition("|")[0])]  # timm writes pattern|number of images
    else:
        listed = _listed(root, split)
        shards = [root / name for name in listed] or sorted(root.glob(f"*{split}*.tar"))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        there = ", ".join(sorted(file.name for file in root.glob("*.tar"))[:5]) or "no .tar file"
        raise DataError(f"{root}: expected {missing[0] if missing else f'shards *{split}*.tar'}, got {there}")
    return shards


def _expand(pattern: str) -> list[str]:
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in _expand(pattern[: found.start()] + number + pattern[found.end() :])]


def _listed(root: Path, split: str) -> list[str]:
    for name in INFO_FILES:
        if (root / name).is_file():
            try:
                splits = json.loads((root / name).read_text(encoding="utf-8"))["splits"]
                return [str(file) for file in splits.get(split, {}).get("filenames", [])]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{root / name}: expected the splits' file names in JSON, got {error!r}") from error
    return []


def _read_index(shard: Path) -> Iterator[_Sample]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as members:
            for member in members:
                path = PurePosixPath(member.name)
                if not member.isfile() or any(is_hidden(part) for part in path.parts):
                    continue
                suffix = path.suffix.lower()
                if suffix in readable_extensions():
                    images[str(path)] = member
                elif suffix == LABEL_SUFFIX:
                    labels[str(path.with_suffix(""))] = _read_label(members, member, shard)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard}: expected a tar file without compression, got {error}") from error
    for name, member in images.items():
        key = next((key for key in _keys(PurePosixPath(name)) if key in labels), None)
        if key is None:
            label = PurePosixPath(name).with_suffix(LABEL_SUFFIX)
            raise DataError(f"{shard}: expected {label}, the label of {member.name}, got none")
        yield _Sample(shard, member.offset_data, member.size, member.name, labels[key])


def _keys(path: PurePosixPath) -> Iterator[str]:
    """Names under which an image's label may stand: "a.b" and "a" for "a.b.jpg".

    WebDataset parts names at their first dot, and so takes all images of names such as "2024.01.jpg" for one sample.
    """
    while path.suffix:
        path = path.with_suffix("")
        yield str(path)


def _read_label(members: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    file = members.extractfile(member)
    text = file.read() if file else b""
    digits = text.strip()
    if not digits.isdigit() or len(digits) > MOST_DIGITS:
        raise DataError(f"{shard}:{member.name}: expected a class as an integer from 0, got {text[:20]!r}")
    return int(digits)
