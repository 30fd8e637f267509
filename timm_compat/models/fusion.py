"""Interface and head folded into timm's own classifier: a plain timm model with the same logits."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.errors import FuseError
from timm_compat.models.backbone import Backbone
from timm_compat.models.backbone_build import RESERVED_ARGUMENTS
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.rebuilding import check_rebuilds
from timm_compat.models.unwrapping import unwrapped

FUSE_TOLERANCE = 1e-4
ROUNDINGS = 16  # of half precision, whose rounding is coarser than that
UNPOOLED = "build the backbone with a global_pool that pools, or keep the model composed"


@torch.no_grad()
def fuse(extractor: CompatExtractor, head: TaskHead) -> nn.Module:
    """A plain timm model in evaluation mode; its logits were compared with the parts' on random images.

    Raises:
        FuseError: the head or the interface is not linear, or timm's classifier is not; the message says which.
        ConfigError: timm would rebuild it as another network, because the backbone was changed.
    """
    weight, bias = _folded(extractor, head)
    backbone = extractor.backbone
    if not hasattr(backbone.model, "reset_classifier"):
        raise FuseError(f"{backbone.architecture} has no classifier in timm that could hold the head; keep it composed")
    plain: Any = copy.deepcopy(unwrapped(backbone.model))
    dtype = next(plain.parameters()).dtype
    plain.reset_classifier(head.num_classes)
    own = {**backbone.data_config, "num_classes": head.num_classes}  # images of the parts' size and crop
    plain.pretrained_cfg = plain.default_cfg = {**plain.pretrained_cfg, **own}
    plain.to(dtype).eval()
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
    check_rebuilds(plain, fused_arguments(backbone, plain), backbone.input_size)
    return plain


def fused_arguments(backbone: Backbone, plain: Any) -> dict[str, Any]:
    """timm's arguments that rebuild a fused model: the backbone's, and what timm noted with its new classifier."""
    before, after = (getattr(model, "_model_args", {}) for model in (backbone.model, plain))
    noted = {key: value for key, value in after.items() if key not in RESERVED_ARGUMENTS and before.get(key) != value}
    return {**backbone.model_args, **noted}


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
    device, dtype = head.device, next(plain.parameters()).dtype
    shape = (2, *extractor.backbone.input_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with evaluating(extractor, head):
        own = head(extractor(images))
    try:
        other = plain(images)
    except RuntimeError as error:  # a classifier on features that timm does not pool
        raise FuseError(f"{extractor.architecture}: timm cannot classify its features ({error}); {UNPOOLED}") from error
    if own.shape != other.shape:
        raise FuseError(
            f"{extractor.architecture}: expected logits {tuple(own.shape)}, got {tuple(other.shape)}; {UNPOOLED}"
        )
    difference = (own - other).abs().max().item()
    tolerance = max(FUSE_TOLERANCE, ROUNDINGS * torch.finfo(dtype).eps)
    if not difference <= tolerance * max(1.0, own.abs().max().item()):
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
