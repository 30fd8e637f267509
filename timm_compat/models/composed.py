"""An extractor and a task head of one space, joined into a classifier without fine-tuning."""

import copy
from typing import Any

import torch
from timm.models import filter_pretrained_cfg
from torch import Tensor, nn

from timm_compat.errors import FuseError
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead

FUSE_TOLERANCE = 1e-4


class CompatModel(nn.Module):
    """A classifier: normalised images (B, C, H, W) to logits (B, K). Made by ``compose``.

    It follows timm's conventions: ``forward_features``, ``forward_head``, ``get_classifier``, ``num_classes``,
    ``num_features``, ``pretrained_cfg``. The parts are shared with the caller, not copied.

    Raises:
        SpaceMismatchError: the parts live in different spaces.
    """

    def __init__(self, extractor: CompatExtractor, head: TaskHead) -> None:
        super().__init__()
        extractor.space.require_same(head.space, "the extractor", "the head")
        self.extractor = extractor
        self.head = head
        self.num_classes = head.num_classes
        self.num_features = self.head_hidden_size = extractor.num_features
        self.class_names = head.class_names
        self.train(extractor.training and head.training)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The backbone's preprocessing, and this model's classes, in timm's form."""
        own = {"num_classes": self.num_classes, "label_names": list(self.class_names)}
        return {**self.extractor.pretrained_cfg, **self.extractor.data_config, **own}

    def forward_features(self, images: Tensor) -> Tensor:
        """Features of the space: (B, D) or (B, D, H', W')."""
        return self.extractor(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of features; the features themselves with ``pre_logits``."""
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The task head."""
        return self.head

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """A plain timm model with the same logits in evaluation, nothing of timm_compat inside.

        Interface and head, both linear in evaluation, become the weights of timm's own classifier. The result is in
        evaluation mode; its logits were compared with this model's on random images.

        Raises:
            FuseError: the head or the interface is not linear, or timm's classifier is not; the message says which.
        """
        weight, bias = self._folded()
        backbone = self.extractor.backbone
        if not hasattr(backbone.model, "reset_classifier"):
            raise FuseError(
                f"{backbone.architecture} has no classifier in timm that could hold the head; keep it composed"
            )
        plain: Any = copy.deepcopy(backbone.model)
        plain.reset_classifier(self.num_classes)
        plain.eval()
        slots = _linear_slots(plain.get_classifier(), (self.num_classes, weight.shape[1]))
        if not slots:
            raise FuseError(
                f"{backbone.architecture}: timm's classifier is {type(plain.get_classifier()).__name__}, not one "
                f"linear map of its {weight.shape[1]} pooled features; keep the model composed"
            )
        for slot in slots:
            slot.weight.copy_(weight.reshape(slot.weight.shape))
            slot.bias.copy_(bias)
        self._check_same(plain)
        # What names the source of the base model's weights would name other weights than these.
        plain.pretrained_cfg = plain.default_cfg = filter_pretrained_cfg(self.pretrained_cfg, remove_source=True)
        return plain

    def _folded(self) -> tuple[Tensor, Tensor]:
        if self.extractor.space.level == "map":
            raise FuseError('a space of level "map" has its interface before the pooling; keep the model composed')
        if not self.head.is_linear:
            raise FuseError(
                f"the head has depth {self.head.depth}, only a linear one (depth 1) folds; keep it composed"
            )
        interface = self.extractor.interface.folded()
        if interface is None:
            raise FuseError(
                f'the interface normalises each sample ("{self.extractor.space.normalization}"), which is not linear; '
                "keep the model composed"
            )
        weight, bias = (parameter.detach().double() for parameter in self.head.classifier.parameters())
        return weight @ interface[0], weight @ interface[1] + bias

    def _check_same(self, plain: nn.Module) -> None:
        device, dtype = self.head.classifier.weight.device, self.head.classifier.weight.dtype
        shape = (2, *self.extractor.backbone.input_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        modes = {module: module.training for module in self.modules()}
        try:
            own, other = self.eval()(images), plain(images)
        finally:
            for module, mode in modes.items():
                module.training = mode
        difference = (own - other).abs().max().item()
        if not difference <= FUSE_TOLERANCE * max(1.0, own.abs().max().item()):
            raise FuseError(
                f"{self.extractor.architecture}: timm treats the pooled features once more before its classifier "
                f"(logits differ by {difference:.2g}); keep the model composed"
            )


def compose(extractor: CompatExtractor, head: TaskHead) -> CompatModel:
    """Join an extractor and a head of one space.

    Raises:
        SpaceMismatchError: they live in different spaces; the message lists the fields that differ.
    """
    return CompatModel(extractor, head)


def _linear_slots(classifier: Any, shape: tuple[int, int]) -> list[Any]:
    # One linear layer, or two whose outputs timm averages (it distils through the second); a fresh BatchNorm before
    # them is made the identity. Anything else gives no slot.
    parts = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    modules: list[Any] = [module for part in parts for module in part.modules()]
    slots = [module for module in modules if isinstance(module, (nn.Linear, nn.Conv2d))]
    for norm in modules:
        if isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None:
            norm.running_var.fill_(1 - norm.eps)
    fits = all(slot.bias is not None and tuple(slot.weight.flatten(1).shape) == shape for slot in slots)
    return slots if fits else []
