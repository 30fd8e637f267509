"""The streams of batches of a run: one per member, one for the pool of unlabelled images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from timm_compat.config import TrainConfig
from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.framing import same_framing
from timm_compat.data.order import Batch
from timm_compat.data.streams import BatchStream, ImageStream
from timm_compat.data.transforms import training_transform
from timm_compat.methods.self_supervised import SelfSupervisedTask
from timm_compat.space import CompatSpace
from timm_compat.training.accelerators import aligned_per_pass
from timm_compat.training.feature_cache import FeatureStream, Wanted, compute_features, home_for
from timm_compat.training.members import Images, Member, Reference, asked_tasks
from timm_compat.training.views import POOL, REFERENCE


class Stream(Protocol):
    """Batches of one source as a function of the step."""

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """This process's share of steps ``first`` to ``last`` - 1."""


def uses_cache(members: Sequence[Member], config: TrainConfig) -> bool:
    """Whether backbones see every image once: all are frozen, and images are not augmented."""
    frozen = all(member.extractor.trainable != "full" for member in members)
    return frozen and config.cache_features and not config.augments


class Sources:
    """The images of a run by source: every member's data set, and the pool's.

    Args:
        members: of the run.
        pool: unlabelled images, or None.
        config: settings.
        accelerator: Accelerate's; its process takes its share of every batch.
        reference: of the run, or None.
    """

    def __init__(
        self,
        members: Sequence[Member],
        pool: Images | None,
        config: TrainConfig,
        accelerator: Any,
        reference: Reference | None = None,
    ) -> None:
        self.reference = reference
        self.members, self.pool, self.config, self.device = members, pool, config, accelerator.device
        self.process = (accelerator.process_index, accelerator.num_processes)
        self.datasets = {member.name: member.dataset for member in members}
        if pool is not None:
            self.datasets[POOL] = pool

    def images(self) -> dict[str, Stream]:
        """Streams of augmented images, by ``same_framing`` of the networks that look on."""
        return {source: self._image_stream(source, dataset) for source, dataset in self.datasets.items()}

    def features(self, space: CompatSpace) -> dict[str, Stream]:
        """Streams of features of frozen backbones; a data set's images are seen once, by all that need them."""
        tasks = asked_tasks(space, self.config)
        wanted = {source: self._wanted(source, tasks) for source in self.datasets}
        features: dict[int, dict[str, Tensor]] = {}
        for dataset in self.datasets.values():
            if id(dataset) not in features:
                asked = [wanted[source] for source, other in self.datasets.items() if other is dataset]
                features[id(dataset)] = compute_features(
                    dataset, _merged(asked), self.config.cache_dir, workers=self.config.workers
                )
        return {
            source: FeatureStream(
                {name: features[id(dataset)][name] for name in wanted[source]},
                dataset.labels,
                self._batch_size(source),
                self.config.seed,
                source,
                process=self.process,
                device=self.device,
            )
            for source, dataset in self.datasets.items()
        }

    def _batch_size(self, source: str) -> int:
        if source != POOL:
            return self.config.batch_size
        passes = self.process[1] * self.config.grad_accum_steps
        return aligned_per_pass(self.config, passes) * passes

    def _image_stream(self, source: str, dataset: Images) -> Stream:
        config = self.config
        seen_by = [want.extractor for want in self._wanted(source, ()).values()]
        data_configs = {same_framing(extractor.data_config): extractor.data_config for extractor in seen_by}
        place: dict[str, Any] = {"seed": config.seed, "name": source, "process": self.process}
        if isinstance(dataset, ArrayDataset):
            return BatchStream(
                dataset,
                self._batch_size(source),
                augmentation=config,
                data_configs=data_configs,
                device=home_for(dataset.images.nbytes, self.device),
                **place,
            )
        transforms = {key: training_transform(found, config) for key, found in data_configs.items()}
        return ImageStream(dataset, self._batch_size(source), transforms=transforms, workers=config.workers, **place)

    def _wanted(self, source: str, tasks: tuple[SelfSupervisedTask, ...]) -> dict[str, Wanted]:
        reference = self.reference
        own = [member for member in self.members if member.name == source]
        wanted = {member.name: Wanted(member.extractor, tasks=tasks) for member in own}
        aligned = self.config.alignment != "none" and (self.pool is None or source == POOL)
        if aligned and (source == POOL or reference is None):
            wanted |= {member.name: Wanted(member.extractor) for member in self.members if member.name != source}
        if reference is not None and (aligned or (self.config.distillation_weight and source != POOL)):
            wanted[REFERENCE] = Wanted(reference.extractor, whole=True)
        return wanted


def _merged(asked: Sequence[Mapping[str, Wanted]]) -> dict[str, Wanted]:
    merged: dict[str, Wanted] = {}
    for wanted in asked:
        for name, want in wanted.items():
            if name not in merged or len(merged[name].tasks) < len(want.tasks):
                merged[name] = want
    return merged
