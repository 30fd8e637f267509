"""Predictions: every extractor sees every image once; all heads run on the features of a batch, which then go."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.errors import ConfigError
from timm_compat.evaluation.scores import Mask
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import DEFAULTS, passes, placed
from timm_compat.models.run_options import RunOptions
from timm_compat.processes import gathered

Images = ArrayDataset | ImageDataset
NOT_RUN = -1
KEPT_IMAGES = 20_000  # whose features are held at a time, for what needs them all together


@dataclass(frozen=True)
class Outputs:
    """What N images gave.

    Attributes:
        predicted: (extractors, heads, N), a head's class; -1 where the pair was not run.
        confidence: (extractors, heads, N), its probability; NaN where the pair was not run.
        features: by extractor, (n, D) or (n, D, H', W') of the images that were to be kept, on the CPU.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    features: dict[str, Tensor]


def run_once(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    dataset: Images,
    runs: Mask,
    *,
    keep: Tensor | None = None,
    options: RunOptions = DEFAULTS,
    description: str = "evaluation",
) -> Outputs:
    """Run extractors on images and heads on features, in evaluation mode.

    Under ``accelerate launch`` every process calls this, sees its share of the batches and gets the whole result.

    Args:
        extractors: by name.
        heads: by name.
        dataset: images.
        runs: (extractors, heads), which pairs to run.
        keep: (n,), ascending positions of the images whose features are wanted too.
        options: device, batch size, precision, workers, progress.
        description: of the progress bar.

    Raises:
        ConfigError: a head whose logits are not one per class.
        DataError: an image that cannot be decoded.
        ImageError: images of another number of channels.
    """
    networks, classifiers = list(extractors.values()), list(heads.values())
    cells = [(int(row), int(column)) for row, column in np.argwhere(runs)]
    wanted = torch.zeros(len(dataset), dtype=torch.bool)
    if keep is not None:
        wanted[keep] = True
    found = _Found(len(networks))
    device = options.device_for(networks)
    with evaluating(*classifiers), placed(classifiers, device, torch.contiguous_format):
        for passed in passes(networks, dataset, options=options, description=description):
            best = [_best(classifiers[column], passed.outputs[row]) for row, column in cells]
            found.add(passed.positions, passed.outputs, best, wanted)
    return found.together(tuple(extractors), cells, runs, wanted)


def extracted(
    extractors: Mapping[str, CompatExtractor],
    dataset: Images,
    *,
    options: RunOptions = DEFAULTS,
    description: str = "features",
) -> dict[str, Tensor]:
    """Features of all extractors, one pass each: (N, D) or (N, D, H', W') on the CPU, by name."""
    nothing, everything = np.zeros((len(extractors), 0), dtype=bool), torch.arange(len(dataset))
    found = run_once(extractors, {}, dataset, nothing, keep=everything, options=options, description=description)
    return found.features


def spread(count: int, most: int = KEPT_IMAGES) -> Tensor:
    """Positions of at most that many of ``count`` images, evenly spread: memory does not grow with the set."""
    if count <= most:
        return torch.arange(count)
    return torch.arange(most) * count // most


def sampled(dataset: Images, most: int = KEPT_IMAGES) -> Images:
    """The images at these positions; the data set itself where they are all."""
    return dataset if len(dataset) <= most else dataset.subset(spread(len(dataset), most))


class _Found:
    """What this process's batches gave, on the CPU."""

    def __init__(self, networks: int) -> None:
        self.positions: list[Tensor] = []
        self.confidence: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.kept: list[Tensor] = []
        self.features: list[list[Tensor]] = [[] for _ in range(networks)]

    def add(
        self, positions: Tensor, outputs: tuple[Tensor, ...], best: list[tuple[Tensor, Tensor]], wanted: Tensor
    ) -> None:
        """Count a batch."""
        self.positions.append(positions)
        if best:
            confidence, predicted = (torch.stack(values, dim=1).cpu() for values in zip(*best, strict=True))
            self.confidence.append(confidence)
            self.predicted.append(predicted)
        chosen = wanted[positions]
        if chosen.any():
            self.kept.append(positions[chosen])
            for features, output in zip(self.features, outputs, strict=True):
                features.append(output[chosen.to(output.device)].cpu())

    def together(self, names: tuple[str, ...], cells: list[tuple[int, int]], runs: Mask, wanted: Tensor) -> Outputs:
        """That of all processes."""
        count = len(wanted)
        predicted = np.full((*runs.shape, count), NOT_RUN, dtype=np.int64)
        confidence = np.full(predicted.shape, np.nan, dtype=np.float32)
        if cells:
            indices, (rows, columns) = self._indices(self.positions), zip(*cells, strict=True)
            confidence[rows, columns] = gathered(_joined(self.confidence), indices, count).T.numpy()
            predicted[rows, columns] = gathered(_joined(self.predicted), indices, count).T.numpy()
        features = {}
        if wanted.any():
            ranks = wanted.cumsum(0) - 1  # among the kept ones
            indices = ranks[self._indices(self.kept)]
            for name, part in zip(names, self.features, strict=True):
                features[name] = gathered(_joined(part), indices, int(wanted.sum()))
        return Outputs(predicted, confidence, features)

    def _indices(self, positions: list[Tensor]) -> Tensor:
        return torch.cat([torch.zeros(0, dtype=torch.int64), *positions])


def _joined(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts) if parts else None


@torch.no_grad()
def _best(head: TaskHead, features: Tensor) -> tuple[Tensor, Tensor]:
    """Probability, float32, and position, int64, of every image's best class: (b,) each."""
    logits = head(features)
    if logits.shape[1] != head.num_classes:
        raise ConfigError(f"head: expected one logit per class, {head.num_classes}, got {logits.shape[1]}")
    best = logits.float().softmax(dim=1).max(dim=1)
    return best.values, best.indices
