"""Build a gallery from a folder of images, or bring one up to date: only new images are embedded, shard by shard."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Unpack

from timm_compat.data.listing import list_images, readable_extensions
from timm_compat.data.raw_batches import LeftOut
from timm_compat.errors import ConfigError, DataError, SpaceMismatchError
from timm_compat.gallery.embedding import Embedders, dataset_of, embed, opened, query_model
from timm_compat.gallery.ids import Entries, ids_of, relative
from timm_compat.gallery.manifest import EMBEDDED, Kind, Manifest, QueryModel
from timm_compat.gallery.searching import Gallery
from timm_compat.gallery.stored import SHARD_ROWS, Rows, Stored, alone, is_gallery
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.run_options import RunKeywords, RunOptions
from timm_compat.storage.files import file_sha256


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        embedded: images that were embedded, including changed ones.
        changed: those of them whose file has changed since they were embedded before.
        kept: images whose stored rows are kept.
        dropped: entries whose image is gone or can no longer be decoded.
        skipped: images that cannot be decoded, left out.
        seconds: in all.
    """

    embedded: int
    changed: int
    kept: int
    dropped: int
    skipped: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        changed = f" ({self.changed:,} of them changed)" if self.changed else ""
        parts = [f"{self.embedded:,} images embedded{changed}", f"{self.kept:,} kept"]
        parts += [f"{self.dropped:,} dropped: their images are gone"] if self.dropped else []
        parts += [f"{self.skipped:,} left out: they cannot be decoded"] if self.skipped else []
        return f"{', '.join(parts)}; {self.seconds:.1f} s"


@dataclass(frozen=True)
class ImageFile:
    """An image of the folder: where it is, and the SHA-256 of its file."""

    path: Path
    sha256: str


def load(folder: str | Path) -> Gallery:
    """An existing gallery.

    Raises:
        ComponentFileError: no gallery, or files that are missing or of another size.

    Example:
        >>> tc.gallery.load("photos.gallery").search("photos/7.png", k=1).hits[0][0].id
        '7.png'
    """
    return Gallery(Stored.open(folder))


def build(
    images: str | Path,
    folder: str | Path,
    extractor: CompatExtractor | str | Path | None = None,
    *,
    skip_corrupt: bool = False,
    **run: Unpack[RunKeywords],
) -> Gallery:
    """Embed every image below a folder, or bring a gallery up to date.

    New and changed images are embedded, those that are gone are removed. The process may be killed at any moment: what
    was stored is kept, and the next call continues; at most the images of one shard (512) are embedded again. Memory
    holds the ids and hashes of all images, and the rows of one shard.

    Args:
        images: a folder of images, at any depth; their paths in it become the ids.
        folder: of the gallery: a new one, or one that was built before.
        extractor: whose features are stored, of level "pooled"; an existing gallery knows its own.
        skip_corrupt: leave out images that cannot be decoded, with a warning, instead of an error.
        **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` (see ``RunOptions``).

    Returns:
        The gallery, with ``report`` set.

    Raises:
        ComponentFileError: the folder holds something else, or a damaged gallery.
        ConfigError: no extractor for a new gallery, or another process that writes to it.
        DataError: no image, one that cannot be decoded, ids that clash, or a folder that has no image of the gallery.
        SpaceMismatchError: a gallery of another model.
        OutputWriteError: no permission, or no space.

    Example:
        >>> tc.gallery.build("photos", "another.gallery", "extractor").report.embedded
        60
        >>> again = tc.gallery.build("photos", "another.gallery")
        >>> again.report.embedded, again.report.kept
        (0, 60)
    """
    start, options = time.perf_counter(), RunOptions(**run)
    place, root = Path(folder), Path(images)
    given = None if extractor is None else opened(extractor)
    paths = _listed(root)
    with alone(place):
        if is_gallery(place):
            stored = Stored.open(place)
            own = own_extractor(stored, given)
        elif given is None:
            raise ConfigError(f"{place}: expected an extractor for a new gallery, got none; give one (--extractor)")
        else:
            own = given
            stored = Stored(place, first_manifest(own, place))
        writer = Writer(stored)
        if writer.owners and not writer.owners.keys() & paths.keys():
            raise DataError(
                f"{root}: expected the folder of the gallery's {len(writer.owners):,} images, got one that holds none "
                "of them; name their folder, or another gallery"
            )
        stored.manifest = replace(stored.manifest, images=relative(root, place))
        found, unreadable = _hashed(paths, skip_corrupt)
        known = writer.hashes()
        wanted = {own_id: file for own_id, file in found.items() if known.get(own_id) != file.sha256}
        changed = wanted.keys() & known.keys()
        skipped = writer.embed(stored.manifest.current, own, wanted, options, skip_corrupt)
        gone = [own_id for own_id in known if own_id not in found or own_id in skipped]
        writer.drop(gone)
        stored.commit(stored.manifest)
        report = BuildReport(
            len(wanted) - len(skipped),
            len(changed - skipped),
            len(known) - len(gone) - len(changed - skipped),
            len(gone),
            len(skipped) + len(unreadable),
            time.perf_counter() - start,
        )
    return Gallery(stored, [own], report)


def first_manifest(extractor: CompatExtractor, folder: Path) -> Manifest:
    """Of a gallery without images yet."""
    space, model = extractor.space.fingerprint, query_model(extractor, folder)
    return Manifest("", kind_key(model), {space: model}, {kind_key(model): embedded_kind(space, model)})


def kind_key(model: QueryModel) -> str:
    """Key of the rows that an extractor embeds."""
    return f"{model.architecture}-{model.digest[:8]}"


def embedded_kind(space: str, model: QueryModel) -> Kind:
    """The rows that an extractor embeds."""
    return Kind(EMBEDDED, (space,), model.feature_dim, model.digest)


def own_extractor(stored: Stored, given: CompatExtractor | None) -> CompatExtractor:
    """The extractor that embeds a gallery's new images: the one given, if it is that one.

    Raises:
        SpaceMismatchError: another one is given.
    """
    manifest = stored.manifest
    kind = manifest.kinds[manifest.current]
    if given is None:
        return Embedders(manifest, stored.folder).of(kind.spaces[0])
    if given.digest() != kind.digest:
        model = manifest.spaces[kind.spaces[0]]
        same = given.space.fingerprint in kind.spaces
        raise SpaceMismatchError(
            f"{stored.folder}: expected {model.architecture} ({model.digest[:12]}) of space {kind.spaces[0]}, which "
            f"embeds this gallery, got {given.architecture} ({given.digest()[:12]}) of {given.space.fingerprint}; "
            + ("it can search the gallery as it is; " if same else "")
            + "to go over to it: timm-compat gallery upgrade --to EXTRACTOR"
        )
    return given


class Writer:
    """Exchanges entries of a gallery: each step is whole, and no id is ever missing or there twice.

    Attributes:
        owners: by id, the name of its shard.
    """

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.owners: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        stored.places()  # refuses ids that repeat
        for shard in stored.manifest.shards:
            entries = stored.entries(shard)
            self.owners.update(dict.fromkeys(entries.ids, shard.name))
            self._hashes.update(zip(entries.ids, entries.hashes, strict=True))

    def hashes(self) -> dict[str, str]:
        """By id the hash of the file that was embedded, as of when this was made."""
        return self._hashes

    def embed(
        self,
        kind: str,
        extractor: CompatExtractor,
        wanted: Mapping[str, ImageFile],
        options: RunOptions,
        skip_corrupt: bool,
    ) -> set[str]:
        """Embed images and keep them, a shard at a time; entries of the same ids make room for them.

        Returns:
            Ids of those that cannot be decoded.

        Raises:
            DataError: one that cannot be decoded, unless they are left out.
        """
        ids, skipped = list(wanted), set[str]()
        if not ids:
            return skipped
        dataset = dataset_of([wanted[own].path for own in ids], [extractor])
        left_out: LeftOut | None = None
        if skip_corrupt:

            def left_out(position: int, error: DataError) -> None:
                skipped.add(ids[position])
                dataset.report([position])

        waiting: list[tuple[str, Any]] = []
        for passed in embed([extractor], dataset, options, description="gallery", left_out=left_out):
            rows = passed.outputs[0].cpu().numpy()
            waiting += zip((ids[position] for position in passed.positions.tolist()), rows, strict=True)
            while len(waiting) >= SHARD_ROWS:
                self._put(kind, waiting[:SHARD_ROWS], wanted)
                del waiting[:SHARD_ROWS]
        if waiting:
            self._put(kind, waiting, wanted)
        return skipped

    def put(self, kind: str, entries: Entries, rows: Rows) -> None:
        """Keep rows; entries of the same ids make room for them in the same step."""
        shard = self.stored.write_shard(kind, entries, rows)
        self._exchange(entries.ids, [shard])
        self.owners.update(dict.fromkeys(entries.ids, shard.name))

    def drop(self, ids: Sequence[str]) -> None:
        """Remove entries."""
        if ids:
            self._exchange(ids, [])
            for own in ids:
                del self.owners[own]

    def _put(self, kind: str, waiting: Sequence[tuple[str, Any]], wanted: Mapping[str, ImageFile]) -> None:
        ids = tuple(own for own, _ in waiting)
        entries = Entries(ids, tuple(wanted[own].sha256 for own in ids))
        self.put(kind, entries, np.stack([row for _, row in waiting]).astype(np.float32))

    def _exchange(self, ids: Iterable[str], added: Sequence[Any]) -> None:
        stored = self.stored
        leaving: dict[str, set[str]] = {}
        for own in ids:
            if own in self.owners:
                leaving.setdefault(self.owners[own], set()).add(own)
        shards = []
        for shard in stored.manifest.shards:
            if shard.name not in leaving:
                shards.append(shard)
                continue
            entries = stored.entries(shard)
            gone = [row for row, own in enumerate(entries.ids) if own in leaving[shard.name]]
            rest = stored.without(shard, gone)
            if rest is not None:
                shards.append(rest)
                self.owners.update({own: rest.name for own in entries.ids if own not in leaving[shard.name]})
        stored.commit(replace(stored.manifest, shards=(*shards, *added)))


def _listed(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise DataError(f"expected a folder of images, found none at {str(root)!r}")
    paths = ids_of(list_images(root), root)
    if not paths:
        raise DataError(
            f"{root}: expected image files ({', '.join(sorted(readable_extensions()))}) in it or below, got none"
        )
    return paths


def _hashed(paths: Mapping[str, Path], skip_corrupt: bool) -> tuple[dict[str, ImageFile], set[str]]:
    """Hashes of the files, and ids of those that cannot be read."""
    found, unreadable = {}, set()
    for own, path in paths.items():
        try:
            found[own] = ImageFile(path, file_sha256(path))
        except OSError as error:
            if not skip_corrupt:
                raise DataError(f"{path}: expected an image that can be read, got {error}") from error
            unreadable.add(own)
    return found, unreadable
