"""Copies that leave a space behind: the given parts stay as they are."""

import copy

from timm_compat.models.extractor import CompatExtractor
from timm_compat.recipes.schema import SpaceRecipe
from timm_compat.space import CompatSpace


def own_space(like: CompatSpace | SpaceRecipe) -> CompatSpace:
    """A space of the same form that shares nothing: what trains in it learns from its task's labels alone."""
    return CompatSpace(like.feature_dim, level=like.level, normalization=like.normalization)


def extractor_in(
    space: CompatSpace,
    extractor: CompatExtractor,
    trainable: str = "full",
) -> CompatExtractor:
    """A copy that lives in another space of the same form.

    Args:
        space: of the copy.
        extractor: stays as it is.
        trainable: of the copy, "full", "adapter" or "frozen".
    """
    backbone = copy.deepcopy(extractor.backbone)
    if trainable == "full" and not any(parameter.requires_grad for parameter in backbone.parameters()):
        backbone.requires_grad_()  # it was an adapter's
    made = CompatExtractor(backbone, space, trainable)
    made.interface.load_state_dict(extractor.interface.state_dict())
    return made.to(extractor.preprocess.mean.device)
