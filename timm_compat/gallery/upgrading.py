"""Move a gallery to another model: the rows are replaced at once, or shard by shard; nothing is lost in between.

Joining, mapping and blending read no image but the sample's: the new rows are written beside the old ones, and a new
manifest puts them in place in one step. Re-embedding replaces one shard after the other; in between the gallery holds
old and new rows and can be searched, and the next call continues where a process was stopped.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from timm_compat.errors import ConfigError, DataError
from timm_compat.gallery.building import ImageFile, Writer, embedded_kind, kind_key
from timm_compat.gallery.embedding import opened, query_model
from timm_compat.gallery.ids import Entries, resolved
from timm_compat.gallery.manifest import BLENDED, MAPPED, Background, Kind, Manifest, QueryModel, Upgrade
from timm_compat.gallery.planning import SAMPLE
from timm_compat.gallery.sampling import (
    Sample,
    as_embedded,
    check_way,
    draw,
    features_of,
    measure_pairs,
    through_interface,
)
from timm_compat.gallery.searching import Gallery
from timm_compat.gallery.stored import EXTRACTORS, Rows, Stored, alone, read_manifest
from timm_compat.gallery.ways import BLEND, JOIN, LEAST_PAIRS, MAP, REEMBED, Pairs, apply_linear, blended, fit_linear
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.run_options import RunKeywords, RunOptions
from timm_compat.space import CompatSpace

APPLICABLE = (JOIN, MAP, BLEND, REEMBED)
BACKGROUND_ROWS = 512  # at most: mean and spread of a query's cosines need no more
BACKGROUND_SHARE = 4  # one in so many sampled images is kept out of the map


@dataclass(frozen=True)
class UpgradeReport:
    """What an upgrade did.

    Attributes:
        way: that was taken.
        converted: rows that are of the new kind now.
        left: rows that stay as they were, because their image is gone, has changed or cannot be decoded.
        seconds: in all.
    """

    way: str
    converted: int
    left: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        left = ""
        if self.left:
            left = f"; {self.left:,} stay as they were: their images are gone, changed or damaged (see gallery build)"
        return f"{self.way}: {self.converted:,} entries{left}; {self.seconds:.1f} s"


def upgrade(
    gallery: Gallery | str | Path,
    to: CompatExtractor | str | Path,
    way: str,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    **run: Unpack[RunKeywords],
) -> Gallery:
    """Move a gallery to another model.

    Args:
        gallery: as stored.
        to: the new extractor, of level "pooled".
        way: "join": rows stay, the new network joins their space and embeds queries and new images (it is saved in the
            gallery's folder). "map": rows are mapped into the new space; the old rows are lost. "blend": the mapped
            row is stored beside each old one; queries pass both networks. "reembed": every image passes the new
            network, shard by shard, also from a mapped gallery; the same call continues where one was stopped.
        sample: number of stored images that are embedded for the map: three quarters fit it, the others tell how
            the scores of mapped and of new rows compare.
        seed: of the sample.
        **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` (see ``RunOptions``).

    Returns:
        The gallery, with ``report`` set.

    Raises:
        ConfigError: no such way, a gallery of several spaces (other than to re-embed), the extractor that it has
            already, or another process that writes to it.
        DataError: too few images of the gallery are on disk to fit a map; to re-embed, none.
        OutputWriteError: no permission, or no space.

    Example:
        >>> gallery = tc.gallery.upgrade("photos.gallery", "new-extractor", "reembed")
        >>> gallery.search("photos/7.png", k=1).hits[0][0].id
        '7.png'
    """
    start, options = time.perf_counter(), RunOptions(**run)
    if way not in APPLICABLE:
        raise ConfigError(f"way: expected one of {', '.join(APPLICABLE)}, got {way!r}")
    new = opened(to)
    folder = gallery.folder if isinstance(gallery, Gallery) else Path(gallery)
    given = gallery._usable() if isinstance(gallery, Gallery) else []
    read_manifest(folder)  # refuses what is no gallery before anything is written
    with alone(folder):
        stored = Stored.open(folder)
        check_way(stored, new, way)
        stored.places()  # refuses ids that repeat
        if way == REEMBED:
            converted = _reembed(stored, new, seed, options)
        else:
            drawn = draw(stored, sample, seed)
            pairs, _, _ = measure_pairs(stored, new, drawn, options, given)
            converted = {JOIN: _join, MAP: _map, BLEND: _blend}[way](stored, new, drawn, pairs)
        left = stored.manifest.num_images - converted
    return Gallery(stored, [*given, new], UpgradeReport(way, converted, left, time.perf_counter() - start))


def _join(stored: Stored, new: CompatExtractor, drawn: Sample, pairs: Pairs) -> int:
    """The new network, joined to the rows' space, embeds from now on; no row changes."""
    manifest = stored.manifest
    (space,) = manifest.spaces_present
    if len(manifest.kinds_present) > 1:
        raise ConfigError(f"{stored.folder}: join: expected rows of one kind, got several; use map, blend or reembed")
    fitting, held_out = _parted(pairs)
    definition = CompatSpace.from_config(manifest.spaces[space].definition)
    joined = CompatExtractor(copy.deepcopy(new.backbone), definition, trainable="adapter").eval()
    joined.interface.set_linear(*fit_linear(fitting.pooled, fitting.stored))
    rests_on = f"{len(fitting.new):,} unlabelled images"
    joined.facts = replace(new.facts, training={"method": "joined in closed form", "rests_on": rests_on})
    place = stored.folder / EXTRACTORS / joined.digest()[:16]
    if not place.is_dir():
        joined.save_pretrained(place)
    model = query_model(CompatExtractor.from_pretrained(place), stored.folder)
    key = kind_key(model)
    rows = {key: through_interface(joined, held_out.pooled), manifest.kinds_present[0]: held_out.stored}
    stored.commit(replace(_embedding_by(manifest, key, space, model), background=_background(stored, drawn, rows)))
    return manifest.num_images


def _map(stored: Stored, new: CompatExtractor, drawn: Sample, pairs: Pairs) -> int:
    """Every row, mapped into the new space."""
    fitting, _ = _parted(pairs)
    mapping = fit_linear(fitting.stored, fitting.new)
    model = query_model(new, stored.folder)
    kind = Kind(MAPPED, (new.space.fingerprint,), model.feature_dim, model.digest)
    return _exchanged(stored, new, drawn, pairs, kind, lambda rows: apply_linear(mapping, rows))


def _blend(stored: Stored, new: CompatExtractor, drawn: Sample, pairs: Pairs) -> int:
    """Every row with its mapped self beside it."""
    fitting, _ = _parted(pairs)
    mapping = fit_linear(fitting.stored, fitting.new)
    (old,) = stored.manifest.spaces_present
    space, model = new.space.fingerprint, query_model(new, stored.folder)
    if space == old:
        raise ConfigError(f"blend: expected an extractor of another space than {old}, got one of the same; use reembed")
    dimension = stored.manifest.spaces[old].feature_dim + model.feature_dim
    kind = Kind(BLENDED, (old, space), dimension, model.digest)
    return _exchanged(stored, new, drawn, pairs, kind, lambda rows: blended(rows, apply_linear(mapping, rows)))


def _exchanged(
    stored: Stored,
    new: CompatExtractor,
    drawn: Sample,
    pairs: Pairs,
    kind: Kind,
    convert: Callable[[Tensor], Tensor],
) -> int:
    """Write every shard anew as another kind, and put all in place at once."""
    manifest, (_, held_out) = stored.manifest, _parted(pairs)
    space, model = new.space.fingerprint, query_model(new, stored.folder)
    current, key = kind_key(model), f"{kind_key(model)}-{kind.made_by}"
    shards = tuple(
        stored.write_shard(key, stored.entries(shard), convert(_tensor(stored.rows(shard))).numpy())
        for shard in manifest.shards
    )
    stored.commit(
        replace(
            manifest,
            current=current,
            spaces={**manifest.spaces, space: model},
            kinds={**manifest.kinds, current: embedded_kind(space, model), key: kind},
            shards=shards,
            background=_background(stored, drawn, {key: convert(held_out.stored), current: held_out.new}),
        )
    )
    return manifest.num_images


def _parted(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """What fits a map, and what it does not see: those are the background, where mapped and true rows are compared."""
    count = len(pairs.new)
    held_out = min(BACKGROUND_ROWS, count // BACKGROUND_SHARE)
    return pairs.at(torch.arange(count - held_out)), pairs.at(torch.arange(count - held_out, count))


def _background(stored: Stored, drawn: Sample, rows: Mapping[str, Tensor]) -> Background:
    """Of the last images of a sample, as many as there are rows."""
    count = len(next(iter(rows.values())))
    entries = Entries(drawn.ids[-count:], drawn.hashes[-count:])
    return stored.write_background(entries, {key: own.numpy() for key, own in rows.items()})


def _reembed(stored: Stored, new: CompatExtractor, seed: int, options: RunOptions) -> int:
    """Every image that is on disk as it was, shard by shard; returns how many rows are of the new kind."""
    key = kind_key(query_model(new, stored.folder))
    if stored.manifest.kinds_present == (key,):
        return stored.manifest.num_images
    if stored.manifest.upgrade is None or stored.manifest.upgrade.kind != key:
        _begin(stored, new, key, seed, options)
    root, writer = resolved(stored.manifest.images, stored.folder), Writer(stored)
    for shard in [shard for shard in stored.manifest.shards if shard.kind != key]:
        entries = stored.entries(shard)
        wanted = {
            own: ImageFile(root / own, digest)
            for own, digest in zip(entries.ids, entries.hashes, strict=True)
            if as_embedded(root / own, digest)
        }
        writer.embed(key, new, wanted, options, skip_corrupt=True)
    return sum(shard.rows for shard in stored.manifest.shards if shard.kind == key)


def _begin(stored: Stored, new: CompatExtractor, key: str, seed: int, options: RunOptions) -> None:
    """Note the way, and a background in every kind that old rows have and in the new one."""
    manifest = stored.manifest
    space, model = new.space.fingerprint, query_model(new, stored.folder)
    if manifest.background is None:
        count = min(BACKGROUND_ROWS, manifest.num_images)
        drawn = draw(stored, count, seed, least=min(LEAST_PAIRS, count))
        entries, files = Entries(drawn.ids, drawn.hashes), drawn.files
        rows = {manifest.kinds_present[0]: drawn.rows.numpy()}
    else:
        entries, files, rows = _kept_background(stored)
    rows[key] = features_of(new, files, options).numpy()
    background, way = stored.write_background(entries, rows), Upgrade(REEMBED, key)
    stored.commit(replace(_embedding_by(manifest, key, space, model), background=background, upgrade=way))


def _embedding_by(manifest: Manifest, key: str, space: str, model: QueryModel) -> Manifest:
    """The manifest with a model that embeds new images and the queries of a space from now on."""
    return replace(
        manifest,
        current=key,
        spaces={**manifest.spaces, space: model},
        kinds={**manifest.kinds, key: embedded_kind(space, model)},
    )


def _kept_background(stored: Stored) -> tuple[Entries, tuple[Path, ...], dict[str, Rows]]:
    """The images of the background that are still there, and their rows in every kind."""
    entries, root = stored.background_entries(), resolved(stored.manifest.images, stored.folder)
    places = [
        place
        for place, (own, digest) in enumerate(zip(entries.ids, entries.hashes, strict=True))
        if as_embedded(root / own, digest)
    ]
    if len(places) < 2:
        raise DataError(
            f"{stored.folder}: expected the images by which its kinds of rows are compared at {root}, found "
            f"{len(places)}; put the images back"
        )
    kept = entries.at(places)
    rows = {key: np.array(stored.background(key)[places]) for key in stored.manifest.kinds_present}
    return kept, tuple(root / own for own in kept.ids), rows


def _tensor(rows: Rows) -> Tensor:
    return torch.from_numpy(np.array(rows))
