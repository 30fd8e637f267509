"""The stored rows nearest to a query: exactly and in blocks, or from a faiss index beside them.

Rows of one kind are compared by cosine. Cosines of two models are not comparable: where one model gives unrelated
images 0.1 and similar ones 0.6, another gives 0.4 and 0.8. A gallery that holds rows of several kinds therefore keeps a
*background*: rows of every kind for the same few hundred of its images. For each query, and for each kind r, let m_r
and s_r be mean and standard deviation of its cosines with that kind's background. A cosine c with a row of kind r
counts as

    score = m + (1 - m) x^p    with    x = (c - m_r) / (1 - m_r),    p = log(s / (1 - m)) / log(s_r / (1 - m_r))

where m and s belong to the current kind: a row as near as the background's mean counts as such, one that is a standard
deviation nearer counts as a standard deviation nearer, and an identical one stays 1. (For rows farther than the
mean, x < 0, it is m + s (c - m_r) / s_r.) As the background images are the same for every kind, only the models differ;
a model that distinguishes images better still puts more of the right ones at the top.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat._extras import require
from timm_compat.errors import ComponentFileError
from timm_compat.gallery.embedding import Query
from timm_compat.gallery.manifest import Shard
from timm_compat.gallery.stored import Rows, Stored, index_file
from timm_compat.storage.files import file_sha256, parse_json, replace_text, replaced_file

LEAST_SPREAD, MOST_SPREAD = 1e-6, 0.99  # of what lies between the mean and 1
QUERIES_AT_ONCE = 256

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Nearest:
    """Of some queries.

    Attributes:
        scores: (Q, k), what they are sorted by.
        cosines: (Q, k).
        positions: (Q, k), in the gallery.
    """

    scores: Tensor
    cosines: Tensor
    positions: Tensor


def nearest(stored: Stored, query: Query, k: int, index: str) -> Iterator[Nearest]:
    """The k nearest rows, for some queries at a time.

    Args:
        stored: with at least one row.
        query: embedded for every space that is present.
        k: how many.
        index: "torch" or "faiss".

    Raises:
        ComponentFileError: damaged files, or an index that is not of these rows.
    """
    count = len(query.names)
    for start in range(0, count, QUERIES_AT_ONCE):
        part = slice(start, min(start + QUERIES_AT_ONCE, count))
        own = Query(query.names[part], {space: rows[part] for space, rows in query.features.items()})
        yield Nearest(*_nearest(_by_kind(stored, own, k, index), scales(stored, own), k))


@dataclass(frozen=True)
class Scale:
    """From one kind's cosines to scores on the current kind's scale, for each query; see this module's formula.

    Attributes:
        own_mean: m_r, (Q, 1).
        own_spread: s_r, (Q, 1).
        mean: m, (Q, 1).
        spread: s, (Q, 1).
    """

    own_mean: Tensor
    own_spread: Tensor
    mean: Tensor
    spread: Tensor

    def __call__(self, cosines: Tensor) -> Tensor:
        """Scores (Q, n) of cosines (Q, n)."""
        own_room, room = ((1 - mean).clamp(min=LEAST_SPREAD) for mean in (self.own_mean, self.mean))
        steps, own_steps = (
            (spread / space).clamp(LEAST_SPREAD, MOST_SPREAD).log()
            for spread, space in ((self.spread, room), (self.own_spread, own_room))
        )
        above = ((cosines - self.own_mean) / own_room).clamp(min=0)
        below = (cosines - self.own_mean).clamp(max=0) * self.spread / self.own_spread
        return self.mean + room * above ** (steps / own_steps) + below


def scales(stored: Stored, query: Query) -> dict[str, Scale]:
    """How each kind's cosines are made comparable (see this module's formula); empty where there is one kind only."""
    manifest = stored.manifest
    present = manifest.kinds_present
    if len(present) < 2:
        return {}
    current = manifest.current if manifest.current in present else present[-1]
    moments = {key: _moments(query.for_kind(manifest.kinds[key]), stored.background(key)) for key in present}
    return {key: Scale(*own, *moments[current]) for key, own in moments.items()}


def moments_of(cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of cosines (Q, n) with a background, (Q, 1) each."""
    return cosines.mean(dim=1, keepdim=True), cosines.std(dim=1, keepdim=True).clamp(min=LEAST_SPREAD)


def _moments(vectors: Tensor, background: Rows) -> tuple[Tensor, Tensor]:
    return moments_of(vectors @ _unit(background).T)


def _unit(rows: Rows) -> Tensor:
    return F.normalize(torch.from_numpy(np.array(rows)), dim=1)  # a copy: what is mapped cannot be written


Block = tuple[str, Tensor, Tensor]  # kind, cosines (Q, n), positions (Q, n) or (n,) in the gallery


def _nearest(blocks: Iterable[Block], scale: Mapping[str, Scale], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The highest scores (Q, k), their cosines and positions; of equal ones the first of the gallery."""
    best: tuple[Tensor, ...] = ()
    for kind, cosines, positions in blocks:
        found = (_scores(scale, kind, cosines), cosines, positions.expand(len(cosines), -1))
        both = [torch.cat(pair, dim=1) for pair in zip(best, found, strict=True)] if best else list(found)
        order = both[0].sort(dim=1, descending=True, stable=True).indices[:, :k]
        best = tuple(part.gather(1, order) for part in both)
    scores, cosines, positions = best
    return scores, cosines, positions


def _scores(scale: Mapping[str, Scale], kind: str, cosines: Tensor) -> Tensor:
    return scale[kind](cosines) if scale else cosines


def _by_kind(stored: Stored, query: Query, k: int, index: str) -> Iterator[Block]:
    manifest = stored.manifest
    vectors = {key: query.for_kind(manifest.kinds[key]) for key in manifest.kinds_present}
    if index == "faiss":
        for key, own in vectors.items():
            yield (key, *_from_index(stored, key, own, k))
        return
    first = 0
    for shard in manifest.shards:
        cosines = vectors[shard.kind] @ _unit(stored.rows(shard)).T
        if not cosines.isfinite().all():
            raise ComponentFileError(f"{stored.folder}: expected finite embeddings in shard {shard.name}, got others")
        yield shard.kind, cosines, torch.arange(first, first + shard.rows)
        first += shard.rows


def _positions(shards: Sequence[Shard], kind: str) -> Tensor:
    """Where the rows of a kind stand in the gallery."""
    first, found = 0, []
    for shard in shards:
        if shard.kind == kind:
            found.append(torch.arange(first, first + shard.rows))
        first += shard.rows
    return torch.cat(found)


def _from_index(stored: Stored, kind: str, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    positions = _positions(stored.manifest.shards, kind)
    index = _faiss_index(stored, kind)
    cosines, places = index.search(np.ascontiguousarray(vectors.numpy()), min(k, len(positions)))
    return torch.from_numpy(cosines), positions[torch.from_numpy(places)]


def _faiss_index(stored: Stored, kind: str) -> Any:
    """The kept index of a kind's rows, made anew where the gallery has changed since."""
    faiss = require("faiss", "retrieval")
    shards = [shard for shard in stored.manifest.shards if shard.kind == kind]
    digest = hashlib.sha256(" ".join(shard.sha256 for shard in shards).encode()).hexdigest()
    file = index_file(stored.folder, kind)
    if _recorded(file) == digest:
        return _read_index(faiss, file, sum(shard.rows for shard in shards), stored.manifest.kinds[kind].dimension)
    _logger.info("%s: building the faiss index of %s", stored.folder, kind)
    index = faiss.IndexFlatIP(stored.manifest.kinds[kind].dimension)
    for shard in shards:
        index.add(_unit(stored.rows(shard)).numpy())
    _facts_file(file).unlink(missing_ok=True)  # what ends this process here must not leave them beside another index
    with replaced_file(file) as partial:
        faiss.write_index(index, str(partial))
    replace_text(_facts_file(file), json.dumps({"embeddings": digest, "sha256": file_sha256(file)}))
    return index


def _facts_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _recorded(file: Path) -> str | None:
    """The digest of the rows that an index says it was built from, after its own hash was checked."""
    if not (file.is_file() and _facts_file(file).is_file()):
        return None
    try:
        facts = parse_json(_facts_file(file).read_bytes())
        embeddings, own = str(facts["embeddings"]), facts["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ComponentFileError(f"{_facts_file(file)}: expected an index's facts, got {error}; remove it") from error
    if own != file_sha256(file):
        raise ComponentFileError(
            f"{file}: expected the index that {_facts_file(file).name} describes, got another file: it does not belong "
            "to these embeddings; remove both, and it is built anew"
        )
    return embeddings


def _read_index(faiss: Any, file: Path, rows: int, dimension: int) -> Any:
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise ComponentFileError(f"{file}: expected a faiss index, got {error}; remove it") from error
    if (index.ntotal, index.d) != (rows, dimension) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ComponentFileError(
            f"{file}: expected an index of {rows} rows of {dimension} dimensions by inner product, got {index.ntotal} "
            f"of {index.d}: it does not belong to these embeddings; remove it, and it is built anew"
        )
    return index
