"""Features of frozen backbones, computed once per image: in memory, or in a folder for later runs.

Every network that needs a data set's features shares one pass over its images. The folder keeps them image by image: a
part of a set, another draw or another order sees no image again. A file's name begins with the hash of all that
determines its features beside the images: weights, preprocessing, self-supervised tasks.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
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

FEATURES, IMAGES = "features", "images"
DIGEST_BYTES = 32
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
    progress: bool | None = False,
) -> dict[str, Tensor]:
    """Features (N, V, F), or (N, V, F, H', W'), by name, on the CPU; the V views are those of ``every_view``.

    Under ``accelerate launch`` every process calls this, sees its share of the images and gets all features.

    Args:
        dataset: every image is seen once, without augmentation.
        wanted: networks by name.
        folder: keeps the features for later runs, image by image.
        workers: processes that decode image files.
        progress: whether to show a bar; on a terminal only if None.

    Raises:
        DataError: no image, or one that cannot be read.
    """
    options = RunOptions(workers=workers, progress=progress)
    if folder is None:
        return _one_pass(dataset, wanted, options)
    digests = dataset.image_digests()
    found = {name: _Kept.read(Path(folder) / _key(want), digests) for name, want in wanted.items()}
    incomplete = {name: want for name, want in wanted.items() if not found[name].known.all()}
    missing = torch.stack([~kept.known for kept in found.values()]).any(dim=0).nonzero().flatten()
    computed = _one_pass(dataset.subset(missing), incomplete, options) if incomplete else {}
    for name, features in computed.items():
        if is_main_on_its_machine():
            _write(Path(folder) / _key(wanted[name]), [digests[index] for index in missing.tolist()], features)
    return {name: kept.completed(missing, computed.get(name)) for name, kept in found.items()}


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


def _one_pass(
    dataset: ArrayDataset | ImageDataset, wanted: Mapping[str, Wanted], options: RunOptions
) -> dict[str, Tensor]:
    parts: list[list[Tensor]] = [[] for _ in wanted]
    positions = [torch.zeros(0, dtype=torch.int64)]
    networks = [_network(want) for want in wanted.values()]
    for passed in run_networks(networks, dataset, options, description="features"):
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


@dataclass(frozen=True)
class _Kept:
    """What a folder holds of N images: features (N, V, ...), or None of no image, and of which they are, (N,)."""

    features: Tensor | None
    known: Tensor

    @classmethod
    def read(cls, stem: Path, digests: Sequence[bytes]) -> "_Kept":
        """What every process finds: one that found less than the others would wait for them in vain."""
        places: dict[bytes, list[int]] = {}
        for place, digest in enumerate(digests):
            places.setdefault(digest, []).append(place)
        features, known = None, torch.zeros(len(digests), dtype=torch.int64)
        for file in sorted(stem.parent.glob(f"{stem.name}-*.safetensors")):
            stored = _read(file)
            images = [] if stored is None else [bytes(row) for row in stored[IMAGES].tolist()]
            pairs = [(row, place) for row, digest in enumerate(images) for place in places.get(digest, ())]
            if stored is not None and pairs:
                rows, here = torch.tensor(pairs).T
                if features is None:
                    features = stored[FEATURES].new_empty(len(digests), *stored[FEATURES].shape[1:])
                features[here], known[here] = stored[FEATURES][rows], 1
        return cls(features, summed(known) == current_process()[1])

    def completed(self, missing: Tensor, computed: Tensor | None) -> Tensor:
        """All features, with what was computed of the missing images."""
        if computed is None:
            assert self.features is not None  # nothing was missing
            return self.features
        whole = computed.new_empty(len(self.known), *computed.shape[1:]) if self.features is None else self.features
        whole[missing] = computed
        return whole


def _key(want: Wanted) -> str:
    network = want.extractor if want.whole else want.extractor.backbone
    facts = {
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


def _read(file: Path) -> dict[str, Tensor] | None:
    try:
        stored = load_file(file)
        return {name: stored[name] for name in (FEATURES, IMAGES)}
    except (SafetensorError, OSError, KeyError) as error:
        logger.warning("%s is damaged (%s); its features are computed again", file, error)
        return None


def _write(stem: Path, digests: Sequence[bytes], features: Tensor) -> None:
    images = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(-1, DIGEST_BYTES)
    file = stem.with_name(f"{stem.name}-{hashlib.sha256(b''.join(digests)).hexdigest()[:16]}.safetensors")
    with replaced_file(file) as partial:
        save_file({FEATURES: features.contiguous(), IMAGES: images}, partial)
