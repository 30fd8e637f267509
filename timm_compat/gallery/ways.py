"""The ways to another model: which cosines each compares, the linear maps that some need, and their scores.

With the stored rows x, the current model's features q of a query, the new backbone's pooled features p and the new
extractor's features n:

    keep      cos(q, x)                        the old model stays
    join      cos(J p, x)                      the new network, joined to the stored rows' space
    map       cos(n, M x)                      stored rows, mapped into the new space
    blend     (cos(q, x) + cos(n, M x)) / 2    both: two networks per query, and rows of both spaces
    reembed   cos(n, n)                        every image passes the new network

J and M are linear, in closed form from pairs of stored rows and new features of the same images (``joining/
closed_form.py``; Maiorca et al., NeurIPS 2023, https://arxiv.org/abs/2311.00664).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from timm_compat.joining.closed_form import ALONE, ClosedForm
from timm_compat.methods.ridge import Moments

KEEP, JOIN, MAP, BLEND, REEMBED = WAYS = ("keep", "join", "map", "blend", "reembed")
HELD_OUT_EVERY = 5
LEAST_PAIRS = 20
RANKS = (1, 10)

Linear = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pairs:
    """What both models make of the same images.

    Attributes:
        stored: (n, D), rows of the gallery.
        queries: (n, D), the current model's features.
        pooled: (n, F), the new backbone's, before its interface.
        new: (n, E), the new extractor's features.
    """

    stored: Tensor
    queries: Tensor
    pooled: Tensor
    new: Tensor

    def at(self, places: Tensor) -> "Pairs":
        """Those of some images."""
        return Pairs(self.stored[places], self.queries[places], self.pooled[places], self.new[places])


def fit_linear(inputs: Tensor, targets: Tensor) -> Linear:
    """Weight (D, F) and bias (D,), float64, of the map from (n, F) to (n, D).

    How strongly it believes in a rotation is what keeps the order of neighbours best on held-out images: the highest
    correlation between cosines of targets with mapped rows and cosines of targets with targets.
    """
    held_out = torch.arange(len(inputs)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    trial = ClosedForm(_moments(inputs[~held_out], targets[~held_out]), None)
    rows, wanted = inputs[held_out], targets[held_out]

    def agreement(strength: float) -> float:
        return _correlation(cosines(wanted, apply_linear(trial.map(strength), rows)), cosines(wanted, wanted))

    best = max(ALONE, key=agreement)
    return ClosedForm(_moments(inputs, targets), None).map(best)


def apply_linear(linear: Linear, rows: Tensor) -> Tensor:
    """Rows (n, F) through a map: (n, D), float32."""
    weight, bias = linear
    return (rows.double() @ weight.T + bias).float()


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1."""
    return F.normalize(rows.float(), dim=1)


def cosines(queries: Tensor, rows: Tensor) -> Tensor:
    """(Q, n)."""
    return unit(queries) @ unit(rows).T


def blended(stored: Tensor, mapped: Tensor) -> Tensor:
    """Rows of both spaces side by side, whose product with a query made alike is the mean of the cosines."""
    return torch.cat([unit(stored), unit(mapped)], dim=1) / 2**0.5


def compared(pairs: Pairs, join: Linear, mapping: Linear) -> dict[str, Tensor]:
    """By way the cosines (n, n) of every image as a query with every image as stored."""
    kept, mapped = cosines(pairs.queries, pairs.stored), cosines(pairs.new, apply_linear(mapping, pairs.stored))
    return {
        KEEP: kept,
        JOIN: cosines(apply_linear(join, pairs.pooled), pairs.stored),
        MAP: mapped,
        BLEND: (kept + mapped) / 2,
        REEMBED: cosines(pairs.new, pairs.new),
    }


def neighbours(scores: Tensor, count: int) -> Tensor:
    """Each query's nearest (n, count), without itself."""
    others = scores.clone().fill_diagonal_(-torch.inf)
    return others.sort(dim=1, descending=True, stable=True).indices[:, :count]


def class_recall(scores: Tensor, labels: Tensor, count: int) -> NDArray[np.float64]:
    """Of each query 1 where an image of its class is among the nearest ``count``, else 0; (m,), queries alone of their
    class left out."""
    found = (labels[neighbours(scores, count)] == labels[:, None]).any(dim=1)
    counted = torch.bincount(labels)[labels] > 1
    return found[counted].double().numpy()


def neighbour_recall(scores: Tensor, wanted: Tensor, count: int) -> NDArray[np.float64]:
    """Of each query the share of the nearest ``count`` by ``wanted`` scores that are found among as many; (n,)."""
    own, true = neighbours(scores, count), neighbours(wanted, count)
    return (own[:, :, None] == true[:, None, :]).any(dim=2).double().mean(dim=1).numpy()


def _moments(inputs: Tensor, targets: Tensor) -> Moments:
    sums = Moments(inputs.shape[1], targets.shape[1])
    sums.add(inputs, targets)
    return sums


def _correlation(found: Tensor, wanted: Tensor) -> float:
    off = ~torch.eye(len(found), dtype=torch.bool)
    value = torch.corrcoef(torch.stack([found[off], wanted[off]]))[0, 1]
    return float(value.nan_to_num(-1.0))
