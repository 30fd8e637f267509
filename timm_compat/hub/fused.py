"""Fused models, which are plain timm: read from our files, checked like any component, with a card from the config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from timm_compat.errors import BackboneError, ComponentFileError, ConfigError
from timm_compat.imagenet import named_in_words
from timm_compat.models.backbone import TIMM_ERRORS
from timm_compat.models.backbone_config import checked_arguments, checked_preprocessing
from timm_compat.models.blank import build_shapes, with_tensors
from timm_compat.models.composed import FUSED_TAG, place_text
from timm_compat.models.extractor import unbounded_buffers
from timm_compat.space import CompatSpace
from timm_compat.storage.cards import render_card
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import ROOT_KEY, WEIGHTS_FILE
from timm_compat.storage.reading import Files, open_files
from timm_compat.storage.source import Source
from timm_compat.vocabulary import check_class_names, listed


def load_fused(config: Mapping[str, Any], files: Files) -> nn.Module:
    """The plain timm model of a checked ``config.json``, in evaluation mode.

    Raises:
        ComponentFileError: a file is missing or damaged, or the config asks for what is not allowed.
        HubError: the weights cannot be fetched.
    """
    names = _class_names(config)
    architecture, arguments = checked_arguments(config)
    preprocessing = checked_preprocessing(config[ROOT_KEY].get("preprocessing"))

    def build() -> Any:
        return timm.create_model(architecture, num_classes=len(names), **arguments)

    try:
        shapes = build_shapes(build)
        tensors = files.tensors(WEIGHTS_FILE, config, shapes.state_dict(), unbounded_buffers(shapes))
        model = with_tensors(shapes, build, tensors)
    except ComponentFileError:
        raise
    except (BackboneError, *TIMM_ERRORS) as error:
        raise ComponentFileError(f"{files}: its model cannot be built here: {error}") from error
    own = {"architecture": architecture, "num_classes": len(names), "label_names": list(names)}
    model.pretrained_cfg = model.default_cfg = {**preprocessing, **own}
    return model.eval()


def read_fused(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a fused model's folder whose files pass every check.

    Raises:
        ComponentFileError: a check fails, or it is no fused model.
    """
    files = open_files(Path(folder))
    config = files.config("model")
    if not config[ROOT_KEY].get("fused"):
        raise ComponentFileError(f"{files}: expected a fused model, got a composed one")
    load_fused(config, files)
    return config


def fused_card(config: Mapping[str, Any], repo_id: str, *, picture: bool = False, subfolder: str = "") -> str:
    """The text of a fused model's card, from its checked ``config.json``.

    Raises:
        ComponentFileError: a fact of the wrong kind.
    """
    ours = config[ROOT_KEY]
    space, names = CompatSpace.from_config(ours.get("space")), _class_names(config)
    size = checked_preprocessing(ours.get("preprocessing"))["input_size"]
    parts = ours.get("parts") if isinstance(ours.get("parts"), dict) else {}
    sources = {name: Source.from_config(parts.get(name)) for name in ("extractor", "head")}
    parameters = ours.get("parameters")
    values = {
        "architecture": checked_arguments(config)[0],
        "class_names": listed(names, shown_as=named_in_words),
        "num_classes": str(len(names)),
        "parameters": f"{parameters:,}" if isinstance(parameters, int) else "not stated",
        "input_size": " x ".join(map(str, size)),
        "space": space.fingerprint,
        **{name: place_text(source) for name, source in sources.items()},
    }
    return render_card(
        "fused",
        values,
        [*space.tags("model", ours["format"]), FUSED_TAG],
        Facts.from_config(ours),
        repo_id=repo_id,
        picture=picture,
        relation="merge",
        base_models=[source.location for source in sources.values() if source],
        class_names=names,
        subfolder=subfolder,
    )


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return check_class_names(config[ROOT_KEY].get("class_names"))
    except ConfigError as error:
        raise ComponentFileError(f"config.json: {error}") from error
