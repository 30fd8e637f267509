"""Which files below a folder are images, and which folders are splits or classes: one listing for all readers."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from timm_compat.errors import DataError

_logger = logging.getLogger(__name__)

# Of all that Pillow can read, what people keep photographs and drawings in.
IMAGE_EXTENSIONS = frozenset(
    {
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
        *(".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff"),
        ".webp",
    }
)
SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"})

ALL = "all"
SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_KINDS = {word: kind for kind, words in SPLITS.items() for word in words}
_ENDING = re.compile(r"[-_ ]?(set|split|data|dataset|images|imgs)$")
WRAPPERS = ("data", "images", "dataset", "imgs")  # folders in which splits or classes may lie one level deeper
_MOST_SHOWN = 5


@dataclass
class LeftOut:
    """What a listing passes over, by kind; ``report`` says it in one line of the log."""

    counts: Counter[str] = field(default_factory=Counter)
    extensions: Counter[str] = field(default_factory=Counter)

    def report(self, root: Path) -> None:
        """Log what was left out, if anything was."""
        parts = [f"{count} {kind}" for kind, count in sorted(self.counts.items())]
        if self.extensions:
            shown = ", ".join(name or "none" for name, _ in self.extensions.most_common(_MOST_SHOWN))
            parts.append(f"{self.extensions.total()} files of other extensions ({shown})")
        if parts:
            _logger.warning("%s: left out %s", root, ", ".join(parts))


def list_images(root: Path) -> list[Path]:
    """Every image file below a folder, by its extension, in the order of the paths. Links are followed, but not in a
    circle; hidden and system folders and hidden files (``.x``, ``._x.jpg``) are left out.

    What is left out is logged.

    Raises:
        DataError: a folder that cannot be read.
    """
    left_out = LeftOut()
    found = _listed(root, left_out)
    left_out.report(root)
    return found


def list_classes(root: Path) -> dict[str, list[Path]]:
    """Image files by class, one folder per class, sorted by name; what is left out is logged.

    Raises:
        DataError: no folder, one without images, or a name that is no text.
    """
    left_out = LeftOut()
    folders = _folders(root, left_out)
    if not folders:
        raise DataError(f"{root}: expected one folder of images per class, got no folder in it")
    for folder in folders:
        _check_text(folder)
    classes = {folder.name: _listed(folder, left_out, (_identity(root),)) for folder in folders}
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"{root}: expected images ({', '.join(sorted(readable_extensions()))}) in every class folder, got none in: "
            f"{', '.join(empty)}; remove empty ones"
        )
    loose = sum(_is_image(entry) for entry in _entries(root))
    if loose:
        left_out.counts["images outside of the class folders"] += loose
    left_out.report(root)
    return classes


def split_folder(root: Path, split: str, *, labelled: bool) -> Path:
    """The folder of a split, in ``root`` or one level deeper (``data/train``); of an undivided set, the whole.

    Names count without regard to case, and with their synonyms: ``train`` also finds ``Training_set``. The whole of an
    undivided set bears the names "train" and "all".

    Args:
        root: a folder.
        split: such as "train", "val" or "test"; another name stands for the folder that bears it.
        labelled: whether images lie in one folder per class.

    Raises:
        DataError: there is no such split; the message lists what there is.
    """
    folder = next((folder for folder in _roots(root) if _splits(folder, labelled)), None)
    if folder is None:
        return _of_undivided(root, split, labelled)
    if split == ALL and not labelled:
        return root
    splits = _splits(folder, labelled)
    found = _named(folder, split, labelled) or [at for at in splits if split_kind(at.name) == split_kind(split)]
    if len(found) != 1:
        raise DataError(f"{folder}: expected a folder {split}, got {_names(found or splits)}")
    return found[0]


def _of_undivided(root: Path, split: str, labelled: bool) -> Path:
    named = _named(root, split, labelled)
    if named and split_kind(split) not in SPLITS:
        return named[0]
    folders = _folders(root)
    if split != ALL and split_kind(split) != "train":
        raise DataError(
            f"{root}: expected a folder {split}, got {_names(folders) or 'images'}, which are no splits; to take all "
            f'of them, leave the split out or say "{ALL}"'
        )
    wraps = labelled and len(folders) == 1 and folders[0].name.lower() in WRAPPERS and _folders(folders[0])
    return folders[0] if wraps else root


def _named(folder: Path, split: str, labelled: bool) -> list[Path]:
    """The folder that bears just this name, or failing that one which differs by case."""
    folders = [child for child in _folders(folder) if not labelled or _folders(child)]
    exact = [folder for folder in folders if folder.name == split]
    return exact or [folder for folder in folders if folder.name.lower() == split.lower()]


def is_divided(root: Path, *, labelled: bool = True) -> bool:
    """Whether a folder holds splits."""
    return any(_splits(folder, labelled) for folder in _roots(root))


def split_kind(name: str) -> str:
    """The word for a split among synonyms: "Training_set" is "train"; a name that is none stays as it is."""
    plain = _ENDING.sub("", name.lower())
    return _KINDS.get(plain, name)


@cache
def readable_extensions() -> frozenset[str]:
    """Those of ``IMAGE_EXTENSIONS`` that the installed Pillow reads."""
    known = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    return IMAGE_EXTENSIONS & known


def _listed(folder: Path, left_out: LeftOut, above: tuple[tuple[int, int], ...] = ()) -> list[Path]:
    return sorted(_walk(folder, left_out, (*above, _identity(folder))))


def _walk(folder: Path, left_out: LeftOut, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_dir():
            identity = _identity(path)
            if is_hidden(entry.name):
                left_out.counts["hidden or system folders"] += 1
            elif identity in above:
                left_out.counts["links to a folder that they lie in"] += 1
            else:
                yield from _walk(path, left_out, (*above, identity))
        elif is_hidden(entry.name):
            # Not .DS_Store and the like, of which every folder of some systems has one.
            left_out.counts.update(["hidden images"] if path.suffix.lower() in readable_extensions() else [])
        elif not entry.is_file():
            left_out.counts["links that lead nowhere, or no files"] += 1
        elif path.suffix.lower() in readable_extensions():
            yield path
        else:
            left_out.extensions[path.suffix.lower()] += 1


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder that can be read, got {error}") from error


def _folders(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    found = []
    for entry in _entries(folder):
        if entry.is_dir():
            if not is_hidden(entry.name):
                found.append(Path(entry.path))
            elif left_out is not None:
                left_out.counts["hidden or system folders"] += 1
    return found


def _roots(root: Path) -> list[Path]:
    folders = _folders(root)
    return [root, *(folder for folder in folders if folder.name.lower() in WRAPPERS)]


def _splits(folder: Path, labelled: bool) -> list[Path]:
    folders = _folders(folder)
    named = [folder for folder in folders if split_kind(folder.name) in SPLITS]
    if labelled:  # a folder of images alone is a class, such as that of trains
        return [folder for folder in named if _folders(folder)]
    return named if len(named) == len(folders) else []


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none that a person put there."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and not is_hidden(entry.name) and Path(entry.name).suffix.lower() in readable_extensions()


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(folder.name for folder in folders)


def _check_text(folder: Path) -> None:
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{str(folder.parent)!r}: expected class folders with names in UTF-8, got {os.fsencode(folder.name)!r}; "
            "rename it"
        ) from None
