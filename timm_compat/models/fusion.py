"""Interface and head folded into timm's own classifier: a plain timm model with the same logits."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.errors import FuseError
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead

FUSE_TOLERANCE = 1e-4


@torch.no_grad()
def fuse(extractor: CompatExtractor, head: TaskHead) -> nn.Module:
    """A plain timm model in evaluation mode; its logits were compared with the parts' on random images.

    Raises:
        FuseError: the head or the interface is not linear, or timm's classifier is not; the message says which.
    """
    weight, bias = _folded(extractor, head)
    backbone = extractor.backbone
    if not hasattr(backbone.model, "reset_classifier"):
        raise FuseError(f"{backbone.architecture} has no classifier in timm that could hold the head; keep it composed")
    plain: Any = copy.deepcopy(backbone.model)
    plain.reset_classifier(head.num_classes)
    own = {**backbone.data_config, "num_classes": head.num_classes}  # images of the parts' size and crop
    plain.pretrained_cfg = plain.default_cfg = {**plain.pretrained_cfg, **own}
    plain.eval()
    slots = _linear_slots(plain.get_classifier())
    parts = _parts(weight, [slot.weight.flatten(1).shape for slot in slots])
    if not parts or any(slot.bias is None for slot in slots):
        raise FuseError(
            f"{backbone.architecture}: timm's classifier is {type(plain.get_classifier()).__name__}, not one "
            f"linear map of its {weight.shape[1]} pooled features; keep the model composed"
        )
    for slot, part in zip(slots, parts, strict=True):
        slot.weight.copy_(part.reshape(slot.weight.shape))
        slot.bias.copy_(bias)
    _check_same(extractor, head, plain)
    return plain


def _folded(extractor: CompatExtractor, head: TaskHead) -> tuple[Tensor, Tensor]:
    if extractor.space.level == "map":
        raise FuseError('a space of level "map" has its interface before the pooling; keep the model composed')
    if not head.is_linear:
        raise FuseError(f"the head has depth {head.depth}, only a linear one (depth 1) folds; keep it composed")
    interface = extractor.interface.folded()
    if interface is None:
        raise FuseError(
            f'the interface normalises each sample ("{extractor.space.normalization}"), which is not linear; '
            "keep the model composed"
        )
    weight, bias = (parameter.detach().double() for parameter in head.classifier.parameters())
    return weight @ interface[0], weight @ interface[1] + bias


def _check_same(extractor: CompatExtractor, head: TaskHead, plain: nn.Module) -> None:
    device, dtype = head.classifier.weight.device, head.classifier.weight.dtype
    shape = (2, *extractor.backbone.input_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    modes = {module: module.training for part in (extractor, head) for module in part.modules()}
    try:
        own, other = head.eval()(extractor.eval()(images)), plain(images)
    finally:
        for module, mode in modes.items():
            module.training = mode
    difference = (own - other).abs().max().item()
    if not difference <= FUSE_TOLERANCE * max(1.0, own.abs().max().item()):
        raise FuseError(
            f"{extractor.architecture}: timm treats the pooled features once more before its classifier "
            f"(logits differ by {difference:.2g}); keep the model composed"
        )


def _linear_slots(classifier: Any) -> list[Any]:
    # One linear layer, or several whose outputs timm averages (it distils through the second); a fresh BatchNorm before
    # them is made the identity.
    parts = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    modules: list[Any] = [module for part in parts for module in part.modules()]
    for norm in modules:
        if isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None:
            norm.running_var.fill_(1 - norm.eps)
    return [module for module in modules if isinstance(module, (nn.Linear, nn.Conv2d))]


def _parts(weight: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """The weights of averaged layers that together are the map ``weight`` (K, F); none where they cannot be."""
    if not all(rows == len(weight) for rows, _ in shapes):
        return []
    widths = [width for _, width in shapes]
    if all(width == weight.shape[1] for width in widths):
        return [weight] * len(shapes)
    if sum(widths) == weight.shape[1]:  # each reads features of its own, which stand side by side
        return [part * len(shapes) for part in weight.split(widths, dim=1)]
    return []
