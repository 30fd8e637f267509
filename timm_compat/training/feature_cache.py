"""Features of frozen backbones, computed once a data set: in memory, or in a folder for later runs.

Every network that needs a data set's features shares one pass over its images. A file's name is the hash of all that
decides its content: weights, images, preprocessing, self-supervised tasks.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from timm_compat.data.arrays import ArrayDataset, image_batches
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.order import PassOrder
from timm_compat.data.transforms import shared_data_config
from timm_compat.methods.self_supervised import every_view
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.features import BATCH_SIZE, evaluating, prepare
from timm_compat.storage.files import replaced_file, tensor_sha256, tensors_sha256

logger = logging.getLogger(__name__)

KEY = "features"


@dataclass(frozen=True)
class Wanted:
    """Features that a training needs of one data set.

    Attributes:
        extractor: a frozen network.
        whole: whether features of the space are wanted (a reference's), or those of the backbone.
        tasks: self-supervised ones, for which the images are seen in every change as well.
    """

    extractor: CompatExtractor
    whole: bool = False
    tasks: tuple[str, ...] = ()


def compute_features(
    dataset: ArrayDataset | ImageDataset, wanted: Mapping[str, Wanted], folder: str | Path | None = None
) -> dict[str, Tensor]:
    """Features (N, V, F), or (N, V, F, H', W'), by name, on the CPU; the V views are those of ``every_view``.

    Args:
        dataset: every image is seen once, without augmentation.
        wanted: networks by name.
        folder: keeps the features for later runs; written file by file, each at once.

    Raises:
        DataError: no image, or one that cannot be read.
    """
    files = _files(dataset, wanted, folder)
    found = {name: features for name, file in files.items() if (features := _read(file)) is not None}
    missing = {name: want for name, want in wanted.items() if name not in found}
    computed = _one_pass(dataset, missing) if missing else {}
    for name, features in computed.items():
        if name in files:
            _write(files[name], features)
    return {**found, **computed}


class FeatureStream:
    """Batches of features as a pure function of the step, in the order in which images would come.

    Args:
        features: by network's name, (N, V, ...).
        labels: (N,).
        batch_size: images a step, over all processes.
        seed: of the orders.
        name: keeps the streams of several members apart.
        process: (rank, number of processes).
        device: where the features are kept.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],
        labels: Tensor,
        batch_size: int,
        seed: int,
        name: str,
        *,
        process: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
    ) -> None:
        self.features = {key: value.to(device) for key, value in features.items()}
        self.targets, self.device = labels, device
        self.order = PassOrder(len(labels), batch_size, seed, name)
        self.rank, self.processes = process

    def batches(self, first: int, last: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """This process's features by name (b, V, ...) and labels (b,) of steps ``first`` to ``last`` - 1, from 0."""
        for step in range(first, last):
            indices = self.order.indices(step)[self.rank :: self.processes]
            here = indices.to(self.device)
            yield {key: value[here] for key, value in self.features.items()}, self.targets[indices].to(self.device)

    def labels(self, step: int) -> Tensor:
        """Labels (batch_size,) of a step over all processes."""
        return self.targets[self.order.indices(step)]


@torch.no_grad()
def _one_pass(dataset: ArrayDataset | ImageDataset, wanted: Mapping[str, Wanted]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
    extractors = [want.extractor for want in wanted.values()]
    data_config = shared_data_config(*(extractor.data_config for extractor in extractors))
    with evaluating(*extractors):
        for images in image_batches(dataset, BATCH_SIZE, data_config):
            for name, want in wanted.items():
                parts[name].append(_views(want, prepare(want.extractor, images)).cpu())
    return {name: torch.cat(chunks) for name, chunks in parts.items()}


def _views(want: Wanted, inputs: Tensor) -> Tensor:
    network: Any = want.extractor if want.whole else want.extractor.backbone
    return torch.stack([network(images) for images in every_view(inputs, want.tasks)], dim=1)


def _files(
    dataset: ArrayDataset | ImageDataset, wanted: Mapping[str, Wanted], folder: str | Path | None
) -> dict[str, Path]:
    if folder is None:
        return {}
    images = _image_digest(dataset)
    return {name: Path(folder) / f"{_key(images, want)}.safetensors" for name, want in wanted.items()}


def _image_digest(dataset: ArrayDataset | ImageDataset) -> str:
    return tensor_sha256(dataset.images) if isinstance(dataset, ArrayDataset) else dataset.digest()


def _key(images: str, want: Wanted) -> str:
    network = want.extractor if want.whole else want.extractor.backbone
    facts = {
        "images": images,
        "weights": tensors_sha256(network.state_dict()),
        "architecture": want.extractor.architecture,
        "model_args": repr(sorted(want.extractor.backbone.model_args.items())),
        "preprocessing": repr(sorted(want.extractor.data_config.items())),
        "out_index": want.extractor.backbone.out_index,
        "whole": want.whole,
        "tasks": want.tasks,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(file: Path) -> Tensor | None:
    if not file.is_file():
        return None
    try:
        return load_file(file)[KEY]
    except (SafetensorError, OSError, KeyError) as error:
        logger.warning("%s is damaged (%s); its features are computed again", file, error)
        return None


def _write(file: Path, features: Tensor) -> None:
    with replaced_file(file) as partial:
        save_file({KEY: features.contiguous()}, partial)
