"""Split: a trained timm classifier becomes an extractor and a head of a space of its own, exactly."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.data.arrays import ArrayDataset, image_batches
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.errors import ConfigError
from timm_compat.models.classifier import open_classifier
from timm_compat.models.extractor import CompatExtractor, origin_facts
from timm_compat.models.features import prepare
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace
from timm_compat.storage.facts import Facts

BATCH_SIZE = 32
# A feature that hardly varies is standardised by this share of the mean variance: elsewhere it may vary.
LEAST_VARIANCE = 1e-4


@torch.no_grad()
def split(
    model: str | nn.Module,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    class_names: Iterable[str] | None = None,
    images: Tensor | ArrayDataset | ImageDataset | Iterable[Tensor] | None = None,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    **timm_kwargs: Any,
) -> tuple[CompatExtractor, TaskHead]:
    """Take a trained timm classifier apart: ``compose(extractor, head)`` gives its logits.

    The space is new and final: its features are what the classifier's last linear layer reads, its common-classes head
    is that layer, its reference is the extractor. Other networks join it through the classes in common.

    Args:
        model: a name for ``timm.create_model``, or a model that timm built (copied).
        pretrained: whether to load timm's weights (by name only).
        weights: a safetensors file of the plain timm model with its classifier (by name only).
        class_names: K names in the order of the logits. Where None, those that come with the model, or ImageNet's
            WordNet ids where it was trained on ImageNet.
        images: raw images, such as (N, C, h, w) of uint8: features are then standardised to mean 0 and variance 1 over
            them, which the head takes back; a join can then tell how far its images are from these.
        img_size: H = W, or (H, W), of the images; the model's own if None.
        batch_size: images at a time, where a tensor or data set came.
        workers: processes that decode an ``ImageDataset``.
        **timm_kwargs: timm's own keywords, such as ``in_chans`` (by name only).

    Returns:
        The extractor, ``trainable="adapter"``, and the head, both in evaluation mode; ``extractor.space`` is the space.

    Raises:
        BackboneError: the model cannot be built, has no classifier, or its logits are no linear map of the features
            that timm gives without classifier; the message says why.
        ConfigError: class names that nobody knows, or of another number; arguments that do not fit together.
        DataError: no image, or one that cannot be decoded.
    """
    parts = open_classifier(
        model, pretrained=pretrained, weights=weights, class_names=class_names, img_size=img_size, **timm_kwargs
    )
    backbone = parts.backbone
    if parts.class_names is None:
        raise ConfigError(
            f"class_names: expected the names of {backbone.architecture}'s {len(parts.bias)} classes, which neither "
            "the model nor timm tells; give class_names=[...] in the order of its logits (on the command line "
            "--class-names FILE: one name a line, or a JSON list)"
        )
    normalization = "none" if images is None else "batch"
    space = CompatSpace(backbone.num_features, parts.class_names, ["common_classes"], normalization=normalization)
    extractor = CompatExtractor(backbone, space, trainable="adapter").to(parts.bias.device).eval()
    extractor.interface.set_linear(torch.eye(space.feature_dim), torch.zeros(space.feature_dim))
    if images is not None:
        _standardize(extractor, image_batches(images, batch_size, extractor.data_config, workers=workers))
    weight, bias = _on_features(extractor, parts.weight, parts.bias)
    head = TaskHead(space, space.class_names).to(bias.device)
    head.classifier.weight.copy_(weight)
    head.classifier.bias.copy_(bias)
    shared = {f"common_classes.{name}": tensor for name, tensor in head.classifier.state_dict().items()}
    space.finalize(shared, reference=extractor.digest())
    origin = origin_facts(backbone.model.pretrained_cfg.get("hf_hub_id")) if pretrained else Facts()
    for part in (space, extractor, head):
        part.facts = replace(origin, training={"method": "split", "architecture": backbone.architecture})
    return extractor, head.eval()


def _standardize(extractor: CompatExtractor, batches: Iterable[Tensor]) -> None:
    # Sums about the first batch's mean, so that a mean that is large beside the spread costs no digits.
    count, around, norm = 0, None, extractor.interface.normalization
    for batch in batches:
        features = extractor.backbone(prepare(extractor, batch)).double()
        if around is None:
            around = features.mean(dim=0)
            sums, squares = torch.zeros_like(around), torch.zeros_like(around)
        count += len(features)
        sums += (features - around).sum(dim=0)
        squares += (features - around).square().sum(dim=0)
    assert around is not None
    mean, variance = sums / count, (squares / count - (sums / count).square()).clamp(min=0)
    least = max(LEAST_VARIANCE * float(variance.mean()), norm.eps)
    norm.running_mean.copy_(around + mean)
    norm.running_var.copy_(variance.clamp(min=least) - norm.eps)


def _on_features(extractor: CompatExtractor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The map from pooled features as one from the space's, which are the same up to scale and shift."""
    folded = extractor.interface.folded()
    assert folded is not None
    scale, shift = folded[0].diagonal(), folded[1]
    return weight / scale, bias - weight @ (shift / scale)
