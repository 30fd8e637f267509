"""The pictures of a report, as PNG with a caption each."""

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from timm_compat._extras import require
from timm_compat.errors import MissingExtraError
from timm_compat.evaluation import plots
from timm_compat.evaluation.answers import Images
from timm_compat.evaluation.baselines import BASELINE_TITLES, Baseline
from timm_compat.evaluation.feature_plot import feature_plot
from timm_compat.evaluation.intervals import bootstrap_interval
from timm_compat.evaluation.matrix import RecombinationMatrix

PICTURE_DPI = 110
PICTURE_IMAGES = 400


def draw_pictures(
    matrix: RecombinationMatrix,
    baselines: Sequence[Baseline],
    features: Mapping[str, Tensor],
    test: Images,
    history: Sequence[Mapping[str, float]],
) -> dict[str, tuple[bytes, str]]:
    """PNG and caption by file name; none without Matplotlib."""
    pictures: dict[str, tuple[bytes, str]] = {}
    with suppress(MissingExtraError):
        caption = "Accuracy of every extractor (rows) under every head (columns); native pairs are framed."
        pictures["matrix.png"] = _png(matrix.plot()), caption
        if baselines:
            caption = "Mean accuracy of recombined pairs, as they are and with every baseline; bootstrap over pairs."
            pictures["baselines.png"] = _png(_baseline_bars(matrix, baselines)), caption
        if history:
            caption = "Losses of the training, mean of every epoch."
            pictures["training.png"] = _png(plots.training_curves(history)), caption
        pair = list(features)[:2]
        if len(pair) == 2 and len({features[name].shape for name in pair}) == 1:
            pictures["features.png"] = _plane(pair, features, test)
    return pictures


def _plane(pair: Sequence[str], features: Mapping[str, Tensor], test: Images) -> tuple[bytes, str]:
    first, second = (features[name][:PICTURE_IMAGES] for name in pair)
    labels, names = test.labels[:PICTURE_IMAGES], (pair[0], pair[1])
    caption = f"Features of the same images from {pair[0]} and {pair[1]}, in the plane of two principal components."
    return _png(feature_plot(first, second, labels, test.class_names, names=names)), caption


def _baseline_bars(matrix: RecombinationMatrix, baselines: Sequence[Baseline]) -> Any:
    others = ~matrix.native
    cells = {"as they are": matrix.accuracy[others]}
    cells |= {BASELINE_TITLES[baseline.name]: baseline.accuracy[others] for baseline in baselines}
    means = {
        name: float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
        for name, values in cells.items()
    }
    intervals = {name: bootstrap_interval(values) for name, values in cells.items()}
    chance = float(matrix.chance.mean())
    return plots.bars(means, intervals=intervals, chance=chance, native=matrix.native_accuracy)


def _png(drawn: tuple[Any, Any]) -> bytes:
    stream = io.BytesIO()
    drawn[0].savefig(stream, dpi=PICTURE_DPI, format="png")
    require("matplotlib.pyplot", "plots").close(drawn[0])
    return stream.getvalue()
