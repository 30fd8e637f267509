"""Retrieval with queries from one extractor and the gallery from another: CMC@k and mean average precision."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat._extras import require
from timm_compat.errors import ConfigError, DataError

DISTANCES = ("cosine", "euclidean")
SEARCHES = ("torch", "faiss")
RANKS = (1, 5, 10)
_AT_ONCE = 1024  # queries


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of a retrieval, and the settings that they depend on.

    Attributes:
        cmc: by k, share of queries with an image of their class among the k nearest; in [0, 1].
        mean_average_precision: in [0, 1].
        num_queries: number of queries that count.
        num_gallery: images in the gallery.
        num_skipped: queries without any image of their class in the gallery; not counted.
        self_excluded: whether position i of the gallery was left out for query i.
        distance: "cosine" or "euclidean".
        normalized: whether features were normalised to length 1 first.
        depth: number of nearest images that were considered; the whole gallery if None.
        search: "torch" (exact) or "faiss" (its exact flat index).
    """

    cmc: dict[int, float]
    mean_average_precision: float
    num_queries: int
    num_gallery: int
    num_skipped: int
    self_excluded: bool
    distance: str
    normalized: bool
    depth: int | None
    search: str


def retrieve(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    same_images: bool = False,
    ranks: Sequence[int] = RANKS,
    distance: str = "cosine",
    depth: int | None = None,
    search: str = "torch",
) -> RetrievalScores:
    """Search a gallery for images of the query's class, nearest first.

    CMC@k is the share of queries with at least one image of their class among the k nearest. The average precision of
    a query with R images of its class is 1 / min(R, depth) * sum over the ranks r of such images of (how many up to r)
    / r; the mean is over queries (Manning et al., Introduction to Information Retrieval, 2008, sec. 8.4). Of images at
    one distance the one that stands first in the gallery comes first.

    Args:
        queries: (Q, D).
        query_labels: (Q,), classes.
        gallery: (G, D), of any extractor of the same space.
        gallery_labels: (G,).
        same_images: whether query i and gallery image i are one image; then it is left out for that query.
        ranks: the k of CMC@k.
        distance: "cosine", of features brought to length 1, or "euclidean", of features as they are.
        depth: look at so many of the nearest only; all if None.
        search: "torch", or "faiss" for large galleries (with ``depth``).

    Raises:
        ConfigError: an unknown distance or search, ranks or depth out of range, or faiss without depth.
        DataError: empty or unequal sides, or no query has an image of its class in the gallery.
        MissingExtraError: faiss is not installed.

    Example:
        >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> tc.evaluation.retrieve(features, labels, features + 0.1, labels).cmc[1]
        1.0
    """
    _check_settings(ranks, distance, depth, search)
    _check_sides(queries, query_labels, gallery, gallery_labels, same_images)
    labels = {name: given.cpu() for name, given in (("query", query_labels), ("gallery", gallery_labels))}
    relevant = _relevant(labels["query"], labels["gallery"], same_images)
    counted = relevant > 0
    if not counted.any():
        raise DataError("gallery: expected images of a query's class (other than the query itself), got none")
    hits: dict[int, float] = dict.fromkeys(ranks, 0.0)
    precision = 0.0
    for rows, order in _orders(_scaled(queries, distance), _scaled(gallery, distance), same_images, depth, search):
        kept = counted[rows]
        match = (labels["gallery"][order] == labels["query"][rows, None])[kept].double()
        for k in hits:
            hits[k] += float(match[:, :k].amax(dim=1).sum())
        ranked = match.cumsum(dim=1) / torch.arange(1, match.shape[1] + 1)
        possible = relevant[rows][kept].clamp(max=match.shape[1])
        precision += float(((ranked * match).sum(dim=1) / possible).sum())
    total = int(counted.sum())
    return RetrievalScores(
        cmc={k: value / total for k, value in hits.items()},
        mean_average_precision=precision / total,
        num_queries=total,
        num_gallery=len(gallery),
        num_skipped=len(queries) - total,
        self_excluded=same_images,
        distance=distance,
        normalized=distance == "cosine",
        depth=depth,
        search=search,
    )


def _scaled(features: Tensor, distance: str) -> Tensor:
    return F.normalize(features.float(), dim=1) if distance == "cosine" else features.float()


def _relevant(queries: Tensor, gallery: Tensor, same_images: bool) -> Tensor:
    classes = int(torch.cat([queries, gallery]).max()) + 1
    found = torch.bincount(gallery, minlength=classes)[queries]
    return found - 1 if same_images else found


def _orders(
    queries: Tensor, gallery: Tensor, same_images: bool, depth: int | None, search: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of queries, and for each the gallery's positions, nearest first, without the query itself: (b, depth)."""
    find = _faiss_search(gallery) if search == "faiss" else _torch_search(gallery)
    length = len(gallery) - same_images if depth is None else min(depth, len(gallery) - same_images)
    for rows in torch.arange(len(queries)).split(_AT_ONCE):
        order = find(queries[rows], min(length + 1, len(gallery)))
        if same_images:
            own = order == rows[:, None]
            # Where a query is not among its nearest, the last of them is dropped instead.
            own[:, -1] |= ~own.any(dim=1)
            order = order[~own].reshape(len(rows), -1)
        yield rows, order[:, :length]


def _torch_search(gallery: Tensor) -> Any:
    def find(queries: Tensor, count: int) -> Tensor:
        distances = torch.cdist(queries, gallery, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.sort(dim=1, stable=True).indices[:, :count].cpu()

    return find


def _faiss_search(gallery: Tensor) -> Any:
    faiss = require("faiss", "retrieval")
    index = faiss.IndexFlatL2(gallery.shape[1])
    index.add(gallery.cpu().numpy())

    def find(queries: Tensor, count: int) -> Tensor:
        return torch.from_numpy(index.search(queries.cpu().numpy(), count)[1])

    return find


def _check_settings(ranks: Sequence[int], distance: str, depth: int | None, search: str) -> None:
    for name, value, choices in (("distance", distance, DISTANCES), ("search", search, SEARCHES)):
        if value not in choices:
            raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    if not ranks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ranks):
        raise ConfigError(f"ranks: expected integers of at least 1, got {list(ranks)}")
    if depth is not None and depth < max(ranks):
        raise ConfigError(f"depth: expected at least the largest rank, {max(ranks)}, got {depth}")
    if search == "faiss" and depth is None:
        raise ConfigError("depth: faiss needs the number of nearest images to look at, got none; set depth")


def _check_sides(queries: Tensor, query_labels: Tensor, gallery: Tensor, labels: Tensor, same_images: bool) -> None:
    for name, features, own in (("queries", queries, query_labels), ("gallery", gallery, labels)):
        if features.ndim != 2 or not len(features) or own.shape != (len(features),):
            raise DataError(f"{name}: expected (N, D) and (N,), got {tuple(features.shape)} and {tuple(own.shape)}")
        if not features.isfinite().all():
            raise DataError(f"{name}: expected finite features, got NaN or infinity")
        if (own < 0).any():
            raise DataError(f"{name}: expected labels of at least 0, got {int(own.min())}")
    if queries.shape[1] != gallery.shape[1]:
        raise DataError(f"expected features of one space, got {queries.shape[1]} and {gallery.shape[1]} dimensions")
    if same_images and not torch.equal(query_labels.cpu(), labels.cpu()):
        raise DataError("same_images: expected the same images on both sides, got other labels")
