"""Networks from which a training starts: copies in a new space; the given parts stay as they are."""

from collections.abc import Sequence
from typing import Any

import torch

from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.heads import TaskHead
from timm_compat.recipes.schema import SpaceRecipe
from timm_compat.space import CompatSpace


def own_space(like: CompatSpace | SpaceRecipe) -> CompatSpace:
    """A space of the same form that shares nothing: what trains in it learns from its task's labels alone."""
    return CompatSpace(like.feature_dim, level=like.level, normalization=like.normalization)


def copied(extractor: CompatExtractor, trainable: str = "full", space: CompatSpace | None = None) -> CompatExtractor:
    """A copy that lives in another space of the same form, its own if None; "full", "adapter" or "frozen"."""
    return extractor.copy_to(space or own_space(extractor.space), trainable)


def copied_pair(
    extractor: CompatExtractor, head: TaskHead, space: CompatSpace, trainable: str = "full"
) -> tuple[CompatExtractor, TaskHead]:
    """Copies of both in another space of the same form."""
    return extractor.copy_to(space, trainable), head.copy_to(space)


def untrained(extractor: CompatExtractor) -> CompatExtractor:
    """A network of the same build with random weights, in a space of its own."""
    backbone = extractor.backbone
    arguments = {key: value for key, value in backbone.model_args.items() if key != "img_size"}
    return create_extractor(
        extractor.architecture,
        own_space(extractor.space),
        out_index=-1 if backbone.out_index is None else backbone.out_index,
        img_size=backbone.input_size[1:],
        **{"in_chans": backbone.input_size[0], **arguments},
    )


def new_head(space: CompatSpace, class_names: Sequence[str], like: TaskHead | None = None) -> TaskHead:
    """A head at zero, or the copy of another one, whose logits are zero for classes that the other does not know."""
    if like is None:
        return TaskHead(space, class_names)
    form: dict[str, Any] = {"depth": like.depth, "hidden_dim": like.hidden_dim, "drop_rate": like.drop_rate}
    head = TaskHead(space, class_names, **form)
    head.steps.load_state_dict(like.steps.state_dict())
    with torch.no_grad():
        for index, name in enumerate(class_names):
            if name in like.class_names:
                other = like.class_names.index(name)
                head.classifier.weight[index] = like.classifier.weight[other]
                head.classifier.bias[index] = like.classifier.bias[other]
    return head
