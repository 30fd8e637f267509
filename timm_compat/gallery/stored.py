"""A gallery's files: shards read in place, and a manifest that is replaced in one step, so that nothing is ever lost.

A shard's files are written before the manifest names them, and removed after it no longer does. Whatever ends a
process in between leaves the old state or the new one, and files that the next writer removes.
"""

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from timm_compat.errors import ComponentFileError, ConfigError, DataError
from timm_compat.gallery.ids import WAY_OUT, Entries, ids_text, read_entries
from timm_compat.gallery.manifest import Background, Manifest, Shard
from timm_compat.storage.files import check_new_folder, file_sha256, replaced_file, writing

MANIFEST_FILE = "gallery.json"
SHARDS, BACKGROUND, EXTRACTORS, FAISS = "shards", "background", "extractors", "faiss"
LOCK_FILE = ".lock"
SHARD_ROWS = 512  # images per shard, the most that must be embedded again after a kill

Rows = NDArray[np.float32]


class Stored:
    """A gallery's folder and its manifest.

    Args:
        folder: of the gallery.
        manifest: as it is there, or the first one of a new gallery.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """An existing gallery; the sizes of its files are checked.

        Raises:
            ComponentFileError: no gallery, or a file that is missing or of another size.
        """
        path = Path(folder)
        stored = cls(path, read_manifest(path))
        for shard in stored.manifest.shards:
            stored.rows(shard)
        return stored

    def rows(self, shard: Shard) -> Rows:
        """The rows (n, dimension), read from disk when they are looked at.

        Raises:
            ComponentFileError: no such file, or something else in it.
        """
        shape = (shard.rows, self.manifest.kinds[shard.kind].dimension)
        return _open_rows(self.folder / SHARDS / f"{shard.name}.npy", shape)

    def background(self, kind: str) -> Rows:
        """The background's rows (n, dimension) in a kind.

        Raises:
            ComponentFileError: it has none, or no such file, or something else in it.
        """
        found = self.manifest.background
        if found is None or kind not in found.kinds:
            raise ComponentFileError(f"{self.folder}: expected a background for rows of kind {kind!r}, got none")
        shape = (found.images, self.manifest.kinds[kind].dimension)
        return _open_rows(self.folder / BACKGROUND / f"{found.kinds[kind][:16]}.npy", shape)

    def background_entries(self) -> Entries:
        """The background's ids and hashes.

        Raises:
            ComponentFileError: there is no background, or a damaged one.
        """
        found = self.manifest.background
        if found is None:
            raise ComponentFileError(f"{self.folder}: expected a background, got none")
        return read_entries(self.folder / BACKGROUND / f"{found.ids[:16]}.json", found.ids, found.images)

    def entries(self, shard: Shard) -> Entries:
        """Ids and hashes.

        Raises:
            ComponentFileError: no such file, a damaged one, or ids that are no paths below a folder.
        """
        return read_entries(self.folder / SHARDS / f"{shard.name}.json", shard.ids_sha256, shard.rows)

    def verify(self) -> dict[str, tuple[int, int]]:
        """Read every file, check every hash; returns by id its shard's and its row's number.

        Raises:
            ComponentFileError: a file is damaged, or an id stands in the gallery twice.
        """
        for place, found in [*self._all_files()]:
            if file_sha256(place) != found:
                raise ComponentFileError(f"{place}: expected SHA-256 {found}, got another: damaged; {WAY_OUT}")
        return self.places()

    def places(self) -> dict[str, tuple[int, int]]:
        """By id its shard's and its row's number.

        Raises:
            ComponentFileError: an id stands in the gallery twice, or ids cannot be read.
        """
        found: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(self.manifest.shards):
            for row, own in enumerate(self.entries(shard).ids):
                if own in found:
                    raise ComponentFileError(f"{self.folder}: expected every id once, got {own!r} twice; {WAY_OUT}")
                found[own] = (number, row)
        return found

    def write_shard(self, kind: str, entries: Entries, rows: Rows) -> Shard:
        """Write a shard's files; only ``commit`` makes them part of the gallery.

        Raises:
            DataError: rows that are not finite.
            OutputWriteError: no right, no room.
        """
        data, text = _npy(rows), ids_text(entries)
        shard = Shard("", kind, len(rows), hashlib.sha256(data).hexdigest(), hashlib.sha256(text).hexdigest())
        name = hashlib.sha256(f"{kind} {shard.sha256} {shard.ids_sha256}".encode()).hexdigest()[:16]
        _write(self.folder / SHARDS / f"{name}.npy", data)
        _write(self.folder / SHARDS / f"{name}.json", text)
        return replace(shard, name=name)

    def write_background(self, entries: Entries, rows: Mapping[str, Rows]) -> Background:
        """Write a background, the same images in several kinds; only ``commit`` makes it part of the gallery."""
        kinds = {}
        for kind, own in rows.items():
            data = _npy(own)
            kinds[kind] = hashlib.sha256(data).hexdigest()
            _write(self.folder / BACKGROUND / f"{kinds[kind][:16]}.npy", data)
        text = ids_text(entries)
        ids = hashlib.sha256(text).hexdigest()
        _write(self.folder / BACKGROUND / f"{ids[:16]}.json", text)
        return Background(len(entries.ids), ids, kinds)

    def without(self, shard: Shard, dropped: Sequence[int]) -> Shard | None:
        """A shard written anew without some of its rows; None where none is left."""
        gone = set(dropped)
        places = [row for row in range(shard.rows) if row not in gone]
        if not places:
            return None
        return self.write_shard(shard.kind, self.entries(shard).at(places), np.array(self.rows(shard)[places]))

    def commit(self, manifest: Manifest) -> None:
        """Exchange the manifest in one step, then remove the files that it does not name.

        Raises:
            OutputWriteError: no right, no room.
        """
        manifest = manifest.tidy()
        _write(self.folder / MANIFEST_FILE, manifest.to_json().encode())
        self.manifest = manifest
        self._remove_unnamed()

    def _all_files(self) -> Iterator[tuple[Path, str]]:
        for shard in self.manifest.shards:
            yield self.folder / SHARDS / f"{shard.name}.npy", shard.sha256
            yield self.folder / SHARDS / f"{shard.name}.json", shard.ids_sha256
        background = self.manifest.background
        if background is not None:
            yield self.folder / BACKGROUND / f"{background.ids[:16]}.json", background.ids
            for digest in background.kinds.values():
                yield self.folder / BACKGROUND / f"{digest[:16]}.npy", digest

    def _remove_unnamed(self) -> None:
        named = {path for path, _ in self._all_files()}
        for part in (SHARDS, BACKGROUND):
            for file in (self.folder / part).glob("*"):
                if file not in named:
                    file.unlink(missing_ok=True)
        indexes = {index_file(self.folder, kind).stem for kind in self.manifest.kinds}
        for file in (self.folder / FAISS).glob("*"):
            if file.stem not in indexes:
                file.unlink(missing_ok=True)
        extractors = {model.location for model in self.manifest.spaces.values()}
        for folder in (self.folder / EXTRACTORS).glob("*"):
            if f"{EXTRACTORS}/{folder.name}" not in extractors:
                shutil.rmtree(folder, ignore_errors=True)


def index_file(folder: Path, kind: str) -> Path:
    """Where the faiss index of a kind's rows is kept."""
    return folder / FAISS / f"{hashlib.sha256(kind.encode()).hexdigest()[:16]}.index"


def is_gallery(folder: str | Path) -> bool:
    """Whether a gallery's manifest is there."""
    return os.path.isfile(Path(folder) / MANIFEST_FILE)


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a folder.

    Raises:
        ComponentFileError: no gallery.
    """
    file = folder / MANIFEST_FILE
    if not os.path.isfile(file):
        raise ComponentFileError(
            f"expected a gallery at {str(folder)!r:.300}, found no {MANIFEST_FILE}; make one: timm-compat gallery build"
        )
    return Manifest.from_json(str(file), file.read_bytes())


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A block in which no other process writes to this gallery; the system ends it where this process is killed.

    Raises:
        ConfigError: one does already.
        ComponentFileError: the folder holds something, and no gallery.
        OutputWriteError: it cannot be written.
    """
    if not is_gallery(folder):
        if folder.is_dir() and not _is_left_behind(folder):
            raise ComponentFileError(
                f"expected a gallery or a new folder, got {str(folder)!r}, which holds something else; name another one"
            )
        if not folder.is_dir():
            check_new_folder(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK_FILE, "ab")  # noqa: SIM115  (closed below, which frees it)
    try:
        _take(lock, folder)
        yield
    finally:
        lock.close()
        if not is_gallery(folder):
            _leave_nothing(folder)


def _is_left_behind(folder: Path) -> bool:
    """Whether a folder is empty, or holds what a writer that was killed before its first shard was whole left there."""
    names = {found.name for found in folder.iterdir() if not found.name.startswith(f".{MANIFEST_FILE}.")}
    return not names or (LOCK_FILE in names and names <= {LOCK_FILE, SHARDS})


def _leave_nothing(folder: Path) -> None:
    """Remove what ``alone`` made where nothing came of it."""
    with contextlib.suppress(OSError):
        (folder / LOCK_FILE).unlink()
        folder.rmdir()


def _take(lock: Any, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two writers at once are the user's to avoid
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"{folder}: another process writes to this gallery; wait for its end, or stop it") from error


def _open_rows(file: Path, shape: tuple[int, int]) -> Rows:
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ComponentFileError(f"{file}: expected embeddings, got {error}; {WAY_OUT}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.shape != shape:
        found = f"{rows.shape}, {rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ComponentFileError(f"{file}: expected {shape}, float32, got {found}; {WAY_OUT}")
    return rows


def _npy(rows: Rows) -> bytes:
    if not np.isfinite(rows).all():
        raise DataError("expected finite embeddings, got NaN or infinity; leave amp out, or look at the extractor")
    data = io.BytesIO()
    np.save(data, np.ascontiguousarray(rows, dtype=np.float32), allow_pickle=False)
    return data.getvalue()


def _write(file: Path, data: bytes) -> None:
    with replaced_file(file) as partial:
        partial.write_bytes(data)
