"""Ids of images: paths below a folder, with the hashes of their files, and the folder relative to a gallery."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from timm_compat.errors import ComponentFileError, DataError
from timm_compat.storage.files import parse_json

WAY_OUT = "take it from a backup, or build the gallery anew"


@dataclass(frozen=True)
class Entries:
    """Images of one shard.

    Attributes:
        ids: paths below the images' folder, with "/".
        hashes: SHA-256 of the image files.
    """

    ids: tuple[str, ...]
    hashes: tuple[str, ...]

    def at(self, places: Sequence[int]) -> "Entries":
        """Those at some places."""
        return Entries(tuple(self.ids[n] for n in places), tuple(self.hashes[n] for n in places))


def read_entries(file: Path, digest: str, count: int) -> Entries:
    """The ids and hashes of a file.

    Raises:
        ComponentFileError: no such file, one of another SHA-256, or ids that are no paths below a folder.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ComponentFileError(f"{file}: expected ids, got {error}; {WAY_OUT}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ComponentFileError(f"{file}: expected the ids that the manifest names, got others; {WAY_OUT}")
    try:
        values = parse_json(data)
        entries = Entries(tuple(values["ids"]), tuple(values["sha256"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ComponentFileError(f"{file}: expected ids and hashes, got something else ({error})") from error
    if not len(entries.ids) == len(entries.hashes) == count:
        raise ComponentFileError(f"{file}: expected {count} ids and hashes, got {len(entries.ids)} ids")
    for own in entries.ids:
        check_id(own)
    return entries


def ids_text(entries: Entries) -> bytes:
    """What ``read_entries`` reads."""
    return json.dumps({"ids": entries.ids, "sha256": entries.hashes}).encode()


def check_id(own: object) -> str:
    """Refuse what is no path below a folder.

    Raises:
        ComponentFileError: something else.
    """
    parts = PurePosixPath(own).parts if isinstance(own, str) else ()
    if not parts or ".." in parts or PurePosixPath(str(own)).is_absolute() or "\0" in str(own):
        raise ComponentFileError(f"expected a path below the images' folder as an id, got {own!r:.120}")
    return str(own)


def ids_of(files: Sequence[Path], root: Path) -> dict[str, Path]:
    """The files' ids, in their order.

    Raises:
        DataError: a name that is no text, or two that look alike (one letter composed, one decomposed).
    """
    found: dict[str, Path] = {}
    seen: dict[str, str] = {}
    for file in files:
        own = file.relative_to(root).as_posix()
        try:
            own.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{root}: expected file names in UTF-8, got {os.fsencode(own)!r}; rename it") from error
        alike = unicodedata.normalize("NFC", own)
        if alike in seen:
            raise DataError(f"{root}: expected ids that differ, got {seen[alike]!r} and {own!r}; rename one")
        seen[alike], found[own] = own, file
    return found


def relative(place: str | Path, folder: Path) -> str:
    """A path as seen from a folder, with "/"; as it is where there is none (another drive)."""
    try:
        return Path(os.path.relpath(Path(place).resolve(), folder.resolve())).as_posix()
    except ValueError:
        return str(place)


def resolved(place: str, folder: Path) -> Path:
    """The path that ``relative`` gave, from here."""
    return Path(os.path.normpath(folder.resolve() / place))
