"""Entry points in timm's registry, so that ``timm.create_model`` builds compatible extractors and composed models.

>>> import timm, timm_compat
>>> timm.list_models("compat_*")
['compat_extractor', 'compat_model']
>>> timm.create_model("compat_extractor", backbone="test_resnet", feature_dim=64).num_features
64
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm.models import register_model
from torch import nn

from timm_compat.errors import ConfigError
from timm_compat.models.composed import CompatModel, compose
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace

DEFAULT_BACKBONE = "resnet18"
DEFAULT_FEATURE_DIM = 128
DEFAULT_NUM_CLASSES = 1000


@register_model
def compat_extractor(
    pretrained: bool = False,
    *,
    backbone: str | nn.Module = DEFAULT_BACKBONE,
    space: CompatSpace | str | Path | None = None,
    feature_dim: int | None = None,
    **kwargs: Any,
) -> CompatExtractor:
    """A compatible extractor.

    Args:
        pretrained: whether to load timm's weights of the backbone.
        backbone: a name for ``timm.create_model``, or a model that timm built.
        space: a space or its folder; a new draft without methods if None.
        feature_dim: of the new draft.
        **kwargs: for ``create_extractor``, timm's own keywords among them.

    Raises:
        BackboneError, ConfigError, SpaceMismatchError: as ``create_extractor``.
        ComponentFileError: the space's folder cannot be read.
    """
    chosen = _space(space, feature_dim)
    return create_extractor(backbone, chosen, pretrained=pretrained, **_without_timm_extras(kwargs))


@register_model
def compat_model(
    pretrained: bool = False,
    *,
    extractor: CompatExtractor | str | Path | None = None,
    head: TaskHead | str | Path | None = None,
    num_classes: int | None = None,
    class_names: Iterable[str] | None = None,
    pretrained_cfg: Any = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> CompatModel:
    """A composed model: an extractor and a task head of one space.

    ``timm.create_model("hf-hub:owner/name", pretrained=True)`` and ``"local-dir:..."`` come here for a composed model
    that was pushed or saved.

    Args:
        pretrained: whether to load the published model's weights, or timm's of a new backbone.
        extractor: an extractor, its folder or Hub id; a new one from ``kwargs`` (see ``compat_extractor``) if None.
        head: a task head, its folder or Hub id; a new linear one if None.
        num_classes: of a new head whose classes have no names but "0", "1" ...; 1000 if None.
        class_names: of a new head.
        pretrained_cfg: as timm read it from a published model; None otherwise.
        cache_dir: of the Hub's client, for a published model.
        **kwargs: for a new extractor.

    Raises:
        BackboneError, ConfigError: as ``create_extractor``; keywords for a new extractor beside a given one.
        ComponentFileError: a folder cannot be read.
        SpaceMismatchError: extractor and head live in different spaces.
    """
    published = _published(pretrained_cfg)
    if published is not None:
        return _read_published(*published, cache_dir, pretrained, num_classes, kwargs)
    kwargs |= {"pretrained_cfg": pretrained_cfg, "cache_dir": cache_dir}
    task_head = TaskHead.from_pretrained(head) if isinstance(head, (str, Path)) else head
    settings = _without_timm_extras(kwargs)
    if extractor is None:
        if task_head is not None:
            settings.setdefault("space", task_head.space)
        body = compat_extractor(pretrained, **settings)
    elif settings or pretrained:
        given = sorted(settings) or ["pretrained"]
        raise ConfigError(f"{given[0]}: expected no settings of a new extractor beside extractor=; drop them")
    else:
        body = extractor if isinstance(extractor, CompatExtractor) else CompatExtractor.from_pretrained(extractor)
    if task_head is None:
        count = DEFAULT_NUM_CLASSES if num_classes is None else num_classes
        names = [str(number) for number in range(count)] if class_names is None else class_names
        task_head = TaskHead(body.space, names)
    return compose(body, task_head)


def _published(pretrained_cfg: Any) -> tuple[str | Path, str | None] | None:
    # Where timm found a config.json that names this entry: (folder or Hub id, revision).
    found = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    if found.get("source") == "hf-hub":
        repo_id, _, revision = found["hf_hub_id"].partition("@")
        return repo_id, revision or None
    return (Path(found["file"]), None) if found.get("source") == "local-dir" else None


def _read_published(
    place: str | Path,
    revision: str | None,
    cache_dir: str | Path | None,
    pretrained: bool,
    num_classes: int | None,
    kwargs: dict[str, Any],
) -> CompatModel:
    given = sorted(_without_timm_extras(kwargs))
    if given:
        raise ConfigError(f"{given[0]}: expected no settings beside a published model, which has its own; drop it")
    model = CompatModel.from_pretrained(place, revision=revision, cache_dir=cache_dir, weights=pretrained)
    if num_classes not in (None, model.num_classes):
        raise ConfigError(
            f"num_classes: the published model has {model.num_classes}, got {num_classes}; drop it, or compose its "
            "extractor with a new TaskHead"
        )
    return model


def _space(space: CompatSpace | str | Path | None, feature_dim: int | None) -> CompatSpace:
    if space is None:
        return CompatSpace(DEFAULT_FEATURE_DIM if feature_dim is None else feature_dim)
    chosen = space if isinstance(space, CompatSpace) else CompatSpace.from_pretrained(space)
    if feature_dim not in (None, chosen.feature_dim):
        raise ConfigError(f"feature_dim: expected {chosen.feature_dim} as the space has it, got {feature_dim}")
    return chosen


def _without_timm_extras(kwargs: dict[str, Any]) -> dict[str, Any]:
    # timm.create_model hands these to every entry point, set or not.
    extras = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    given = [name for name in extras if kwargs.get(name) is not None]
    if given:
        raise ConfigError(f"{given[0]}: expected none here; name the weights in backbone=, such as 'resnet18.a1_in1k'")
    return {name: value for name, value in kwargs.items() if name not in extras}
