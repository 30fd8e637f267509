"""How a step sees a batch: raw images through whole networks, or precomputed features of frozen backbones."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from timm_compat.data.framing import same_framing
from timm_compat.methods.self_supervised import SelfSupervisedTask, view_numbers
from timm_compat.models.extractor import CompatExtractor

REFERENCE = "<reference>"  # no identifier, so no member bears this name
POOL = "<pool>"


class View(Protocol):
    """What the loss asks of a batch. Extractors are named as members are."""

    def upright(self, name: str, extractor: CompatExtractor, batch: Any) -> Tensor:
        """The batch as this extractor's input (b, ...)."""

    def changed(
        self, task: SelfSupervisedTask, name: str, upright: Tensor, batch: Any, indices: Tensor, answers: Tensor
    ) -> Tensor:
        """Inputs of the images at these indices, changed as the task's answers (n,) say: (n, ...)."""

    def features(self, extractor: CompatExtractor, inputs: Tensor) -> Tensor:
        """Features of the space."""

    def targets(self, extractor: CompatExtractor, batch: Any, indices: Tensor) -> Tensor:
        """The reference's features of the images at these indices."""

    def select(self, batch: Any, indices: Tensor) -> Any:
        """The batch's images at these indices."""


class ImageView:
    """Batches are images (b, C, H, W) of uint8 by ``same_framing`` of the networks that look on."""

    def __init__(self, channels_last: bool = False) -> None:
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format

    def upright(self, name: str, extractor: CompatExtractor, batch: dict[str, Tensor]) -> Tensor:
        """Preprocessed images."""
        images: Tensor = extractor.preprocess(batch[same_framing(extractor.data_config)], framed=True)
        return images.to(memory_format=self.memory_format)

    def changed(
        self,
        task: SelfSupervisedTask,
        name: str,
        upright: Tensor,
        batch: dict[str, Tensor],
        indices: Tensor,
        answers: Tensor,
    ) -> Tensor:
        """Preprocessed images, changed."""
        return task.change(upright[indices], answers)

    def features(self, extractor: CompatExtractor, inputs: Tensor) -> Tensor:
        """Through backbone and interface."""
        return extractor(inputs)

    @torch.no_grad()
    def targets(self, extractor: CompatExtractor, batch: dict[str, Tensor], indices: Tensor) -> Tensor:
        """Through the frozen reference."""
        return extractor(self.upright(REFERENCE, extractor, self.select(batch, indices)))

    def select(self, batch: dict[str, Tensor], indices: Tensor) -> dict[str, Tensor]:
        """Some of the images."""
        return {framing: images[indices] for framing, images in batch.items()}


class FeatureView:
    """Batches are features by extractor's name, (b, V, F) or (b, V, F, H', W').

    Args:
        tasks: the self-supervised ones, whose changed images are among the V views, as ``every_view`` orders them.
    """

    def __init__(self, tasks: Sequence[SelfSupervisedTask] = ()) -> None:
        self.numbers = view_numbers(tasks)

    def upright(self, name: str, extractor: CompatExtractor, batch: dict[str, Tensor]) -> Tensor:
        """The backbone's features of the images as they are."""
        return batch[name][:, 0]

    def changed(
        self,
        task: SelfSupervisedTask,
        name: str,
        upright: Tensor,
        batch: dict[str, Tensor],
        indices: Tensor,
        answers: Tensor,
    ) -> Tensor:
        """The backbone's features of changed images."""
        return batch[name][indices, self.numbers[task.name][answers].to(indices.device)]

    def features(self, extractor: CompatExtractor, inputs: Tensor) -> Tensor:
        """Through the interface alone."""
        return extractor.interface(inputs)

    def targets(self, extractor: CompatExtractor, batch: dict[str, Tensor], indices: Tensor) -> Tensor:
        """The reference's features, which were computed as such."""
        return batch[REFERENCE][indices, 0]

    def select(self, batch: dict[str, Tensor], indices: Tensor) -> dict[str, Tensor]:
        """Some of the images."""
        return {name: features[indices] for name, features in batch.items()}
