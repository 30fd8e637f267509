"""Extractors of an adaptation: new ones, copies, and what they say about unlabelled images."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from timm_compat.applications.copies import extractor_in
from timm_compat.applications.domain_adaptation.recipe import AdaptRecipe
from timm_compat.data.raw_batches import raw_batches
from timm_compat.data.transforms import evaluation_transform
from timm_compat.models.batch_statistics import measure_statistics
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import extract_features, prepare
from timm_compat.seeding import generator, seeded
from timm_compat.space import CompatSpace
from timm_compat.training.members import Images


def new_extractor(recipe: AdaptRecipe, space: CompatSpace, in_chans: int, seed: int, name: str) -> CompatExtractor:
    """The recipe's network, started at random (or pretrained) by seed and name.

    Raises:
        BackboneError: timm does not know it, or it does not take the arguments.
    """
    arguments: dict[str, Any] = {"in_chans": in_chans, **recipe.arguments}
    with seeded(seed, "adapt", name):
        return create_extractor(
            recipe.backbone, space, pretrained=recipe.pretrained, img_size=recipe.img_size, **arguments
        )


def pair_in(space: CompatSpace, extractor: CompatExtractor, head: TaskHead) -> tuple[CompatExtractor, TaskHead]:
    """Copies that live in another space of the same form, with what is known of the given ones."""
    copied, made = extractor_in(space, extractor), TaskHead.from_settings(head.settings(), space)
    made.load_state_dict(head.state_dict())
    copied.facts, made.facts = extractor.facts, head.facts
    return copied, made.to(head.classifier.weight.device)


def tied_copy(extractor: CompatExtractor) -> CompatExtractor:
    """A second extractor with the same weights, not copies of them, but BatchNorm statistics of its own.

    Trained together, the two are one network that normalises each domain by itself: Chang et al., CVPR 2019
    (https://arxiv.org/abs/1906.03950), with the affine parameters shared as well.
    """
    shared: dict[int, Any] = {id(parameter): parameter for parameter in extractor.parameters()}
    return copy.deepcopy(extractor, shared)


def with_statistics_of(extractor: CompatExtractor, images: Images, batch_size: int, seed: int) -> CompatExtractor:
    """A copy with BatchNorm statistics of these images."""
    adapted = copy.deepcopy(extractor)
    measure_statistics(adapted, _shuffled_batches(adapted, images, batch_size, seed))
    return adapted


@torch.no_grad()
def opinion(extractor: CompatExtractor, head: TaskHead, images: Images) -> tuple[Tensor, Tensor]:
    """Features (N, D) and the head's probabilities (N, K) in evaluation mode, on the CPU."""
    features = extract_features(extractor, images)
    with evaluating(head):
        logits = head(features.to(head.classifier.weight.device))
    return features.cpu(), logits.float().softmax(dim=1).cpu()


def _shuffled_batches(extractor: CompatExtractor, images: Images, size: int, seed: int) -> Iterator[Tensor]:
    # Images sorted by class would make each batch's variance that of a class.
    order = torch.randperm(len(images), generator=generator(seed, "batch statistics"))
    if len(order) % size == 1:
        order = order[:-1]  # one image has no variance
    for batch in raw_batches(images.subset(order), size, [evaluation_transform(extractor.data_config)]):
        yield prepare(extractor, batch)
