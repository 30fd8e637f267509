"""Features of frozen backbones, computed once per data set: in memory, or in a folder for later runs.

Every network that needs a data set's features shares one pass over its images. A file's name is the hash of all that
determines its content: weights, images, preprocessing, self-supervised tasks.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.order import Batch, PassOrder
from timm_compat.methods.self_supervised import SelfSupervisedTask, every_view
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.passes import Network, run_networks
from timm_compat.models.run_options import RunOptions
from timm_compat.processes import current_process, gathered, is_main_on_its_machine, summed
from timm_compat.storage.files import replaced_file, tensors_sha256

logger = logging.getLogger(__name__)

KEY = "features"
MOST_OF_GPU = 0.25  # of its free memory, for the images or features of one source


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
    tasks: tuple[SelfSupervisedTask, ...] = ()


def compute_features(
    dataset: ArrayDataset | ImageDataset,
    wanted: Mapping[str, Wanted],
    folder: str | Path | None = None,
    *,
    workers: int = 0,
) -> dict[str, Tensor]:
    """Features (N, V, F), or (N, V, F, H', W'), by name, on the CPU; the V views are those of ``every_view``.

    Under ``accelerate launch`` every process calls this, sees its share of the images and gets all features.

    Args:
        dataset: every image is seen once, without augmentation.
        wanted: networks by name.
        folder: keeps the features for later runs; written file by file, each at once.
        workers: processes that decode image files.

    Raises:
        DataError: no image, or one that cannot be read.
    """
    files = _files(dataset, wanted, folder)
    found = _readable(files)
    missing = {name: want for name, want in wanted.items() if name not in found}
    computed = _one_pass(dataset, missing, workers) if missing else {}
    for name, features in computed.items():
        if name in files and is_main_on_its_machine():
            _write(files[name], features)
    return {**found, **computed}


def home_for(size: int, device: torch.device) -> torch.device:
    """Where so many bytes are kept: on a GPU that has room to spare for them, else on the CPU."""
    if device.type == "cuda" and size > MOST_OF_GPU * torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device


class FeatureStream:
    """Batches of features as a pure function of the step, in the order in which images would come.

    Args:
        features: by network's name, (N, V, ...).
        labels: (N,).
        batch_size: images per step, over all processes.
        seed: of the orders.
        name: keeps the streams of several members apart.
        process: (rank, number of processes).
        device: where batches are wanted; the features themselves lie there too, where it has room to spare for them.
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
        self.targets, self.device = labels, torch.device(device)
        home = home_for(sum(value.nbytes for value in features.values()), self.device)
        self.features = {key: value.to(home) for key, value in features.items()}
        self.order = PassOrder(len(labels), batch_size, seed, name)
        self.rank, self.processes = process

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """This process's share of steps ``first`` to ``last`` - 1, from 0; features (b, V, ...) by network."""
        for step in range(first, last):
            everyone = self.order.indices(step)
            indices = everyone[self.rank :: self.processes]
            features = {key: value[indices.to(value.device)].to(self.device) for key, value in self.features.items()}
            yield Batch(features, self.targets[indices].to(self.device), self.targets[everyone])


def _one_pass(dataset: ArrayDataset | ImageDataset, wanted: Mapping[str, Wanted], workers: int) -> dict[str, Tensor]:
    parts: list[list[Tensor]] = [[] for _ in wanted]
    positions = [torch.zeros(0, dtype=torch.int64)]
    options = RunOptions(workers=workers, progress=False)
    for passed in run_networks([_network(want) for want in wanted.values()], dataset, options):
        positions.append(passed.positions)
        for part, output in zip(parts, passed.outputs, strict=True):
            part.append(output.cpu())
    found = {}
    for name, part in zip(wanted, parts, strict=True):
        found[name] = gathered(torch.cat(part) if part else None, torch.cat(positions), len(dataset))
        part.clear()
    return found


def _network(want: Wanted) -> Network:
    """A network whose outputs are the features of every view: (b, V, ...)."""
    network = Network.of(want.extractor, pooled=not want.whole)

    def forward(images: Tensor) -> Tensor:
        return torch.stack([network.forward(view) for view in every_view(images, want.tasks)], dim=1)

    return replace(network, forward=forward)


def _readable(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """What every process finds: one that found less than the others would wait for them in vain."""
    found = {name: _read(file) for name, file in files.items()}
    here = torch.tensor([features is not None for features in found.values()], dtype=torch.int64)
    everywhere = (summed(here) == current_process()[1]).tolist() if files else []
    return {
        name: features
        for (name, features), common in zip(found.items(), everywhere, strict=True)
        if common and features is not None
    }


def _files(
    dataset: ArrayDataset | ImageDataset, wanted: Mapping[str, Wanted], folder: str | Path | None
) -> dict[str, Path]:
    if folder is None:
        return {}
    images = dataset.digest()
    return {name: Path(folder) / f"{_key(images, want)}.safetensors" for name, want in wanted.items()}


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
        "tasks": [task.name for task in want.tasks],
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
