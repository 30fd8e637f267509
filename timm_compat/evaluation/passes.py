"""Every extractor sees every image once; all heads run on what it made of a batch, then the batch is forgotten."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.decoding import Place, decoded
from timm_compat.data.framing import same_framing
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.transforms import evaluation_transform
from timm_compat.errors import ConfigError
from timm_compat.evaluation.processes import gathered, own_batches
from timm_compat.evaluation.scores import Mask
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.features import BATCH_SIZE, evaluating, prepare
from timm_compat.models.heads import TaskHead

Images = ArrayDataset | ImageDataset
NOT_RUN = -1
NO_ANSWER = torch.zeros(0, 2, dtype=torch.float64)


@dataclass(frozen=True)
class Outputs:
    """What N images gave.

    Attributes:
        predicted: (extractors, heads, N), a head's class; -1 where the pair was not run.
        confidence: (extractors, heads, N), its probability; NaN where the pair was not run.
        features: by extractor, (N, D) or (N, D, H', W') on the CPU, where they were to be kept.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    features: dict[str, Tensor]


@torch.no_grad()
def run_once(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    dataset: Images,
    runs: Mask,
    *,
    keep_features: bool = False,
    workers: int = 0,
) -> Outputs:
    """Run extractors on images and heads on features, in evaluation mode.

    Under ``accelerate launch`` every process calls this, sees its share of the batches and gets the whole result.
    Images in memory are passed once for all extractors, image files are decoded once for all that see them alike.

    Args:
        extractors: by name.
        heads: by name.
        dataset: images.
        runs: (extractors, heads), which pairs to run.
        keep_features: whether the features are wanted too.
        workers: processes that decode image files.

    Raises:
        ConfigError: a head whose logits are not one a class.
        DataError: an image that cannot be decoded.
        ImageError: images of another number of channels.
    """
    predicted = np.full((len(extractors), len(heads), len(dataset)), NOT_RUN, dtype=np.int64)
    confidence = np.full(predicted.shape, np.nan, dtype=np.float32)
    features: dict[str, Tensor] = {}
    rows = {name: row for row, name in enumerate(extractors)}
    with evaluating(*extractors.values(), *heads.values()):
        for group in _alike(extractors, dataset):
            own_runs = {name: runs[rows[name]] for name in group}
            answers, kept = _run_group(group, heads, dataset, own_runs, workers, keep_features)
            for (name, column), answer in answers.items():
                everyone = gathered(torch.cat([NO_ANSWER, *answer]), len(dataset), BATCH_SIZE)
                confidence[rows[name], column], predicted[rows[name], column] = everyone[:, 0], everyone[:, 1].long()
            if keep_features:
                for name, chunks in kept.items():
                    own = torch.cat(chunks) if chunks else _no_features(group[name])
                    features[name] = gathered(own, len(dataset), BATCH_SIZE)
    return Outputs(predicted, confidence, features)


def extracted(extractors: Mapping[str, CompatExtractor], dataset: Images, *, workers: int = 0) -> dict[str, Tensor]:
    """Features of all extractors, one pass each: (N, D) or (N, D, H', W') on the CPU, by name."""
    nothing = np.zeros((len(extractors), 0), dtype=bool)
    return run_once(extractors, {}, dataset, nothing, keep_features=True, workers=workers).features


def _run_group(
    group: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    dataset: Images,
    runs: Mapping[str, Mask],
    workers: int,
    keep: bool,
) -> tuple[dict[tuple[str, int], list[Tensor]], dict[str, list[Tensor]]]:
    answers: dict[tuple[str, int], list[Tensor]] = {
        (name, column): [] for name in group for column in np.flatnonzero(runs[name]).tolist()
    }
    kept: dict[str, list[Tensor]] = {name: [] for name in group}
    framed = isinstance(dataset, ImageDataset)
    for images in _own_images(dataset, next(iter(group.values())), workers):
        for name, extractor in group.items():
            features = extractor(prepare(extractor, images, framed))
            if keep:
                kept[name].append(features.cpu())
            for column, head in enumerate(heads.values()):
                if runs[name][column]:
                    answers[name, column].append(_best(head, features))
    return answers, kept


def _alike(extractors: Mapping[str, CompatExtractor], dataset: Images) -> list[dict[str, CompatExtractor]]:
    """Groups of extractors that see the same decoded images."""
    if isinstance(dataset, ArrayDataset):
        return [dict(extractors)]
    groups: dict[str, dict[str, CompatExtractor]] = {}
    for name, extractor in extractors.items():
        groups.setdefault(same_framing(extractor.data_config), {})[name] = extractor
    return list(groups.values())


def _own_images(dataset: Images, extractor: CompatExtractor, workers: int) -> Iterator[Tensor]:
    batches = own_batches(len(dataset), BATCH_SIZE)
    if isinstance(dataset, ArrayDataset):
        yield from (dataset.images[batch] for batch in batches)
    elif batches:
        places = ([Place(i, i) for i in batch.tolist()] for batch in batches)
        for images, _ in decoded(dataset, evaluation_transform(extractor.data_config), places, workers=workers):
            yield images


def _best(head: TaskHead, features: Tensor) -> Tensor:
    """Probability and position of every image's best class: (b, 2), float64, on the CPU."""
    logits = head(features.to(head.classifier.weight.device))
    if logits.shape[1] != head.num_classes:
        raise ConfigError(f"head: expected one logit a class, {head.num_classes}, got {logits.shape[1]}")
    best = logits.float().softmax(dim=1).max(dim=1)
    return torch.stack([best.values.cpu().double(), best.indices.cpu().double()], dim=1)


def _no_features(extractor: CompatExtractor) -> Tensor:
    """For a process without a batch of its own: no features, of the right shape."""
    blank = torch.zeros(1, *extractor.data_config["input_size"], device=extractor.preprocess.mean.device)
    return extractor(blank)[:0].cpu()
