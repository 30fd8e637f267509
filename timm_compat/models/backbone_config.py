"""A backbone as JSON values, and back: timm's own keys at the root of ``config.json``, our facts beside them."""

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.models import filter_pretrained_cfg

from timm_compat.errors import BackboneError, ComponentFileError, ConfigError
from timm_compat.models.backbone import MAX_IMAGE_SIDE, Backbone, features_of
from timm_compat.models.backbone_build import MAX_CHANNELS, RESERVED_ARGUMENTS, build_backbone, check_model_name
from timm_compat.models.rebuilding import check_rebuilds
from timm_compat.models.unwrapping import unwrapped
from timm_compat.storage.files import ROOT_KEY

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # what timm's transforms know
CROP_MODES = ("center", "squash", "border")
CROP_LIMITS = (0.05, 4.0)  # images are resized to their size over this, which must neither be huge nor nothing
# Keys of a pretrained_cfg that say where weights once came from, or hold them.
ARCHITECTURE = re.compile(r"\w+", re.ASCII)
MAX_NUMBER = 65_536  # of any width or rate among timm's arguments
LIMITS = {"depth": 1_000, "layers": 1_000, "window": 256, "size": MAX_IMAGE_SIDE, "resolution": MAX_IMAGE_SIDE}
MAX_IMAGE_NUMBERS = 2**26  # channels times height times width, before the crop
LEAST_STD, LARGEST_MEAN = 1e-6, 1e6
SOURCE_KEYS = ("architecture", "label_offset", "state_dict")


def timm_config(backbone: Backbone) -> dict[str, Any]:
    """The keys that timm writes to a ``config.json``: ``timm.create_model("hf-hub:...")`` rebuilds the backbone.

    Raises:
        ConfigError: the backbone was built with arguments that are no JSON values, or changed afterwards.
    """
    try:
        model_args = json.loads(json.dumps(backbone.model_args))
    except TypeError as error:
        raise ConfigError(
            f"{backbone.architecture}: expected JSON values as timm's arguments, got {backbone.model_args} ({error}); "
            "name layers by text, such as act_layer='relu'"
        ) from error
    model = unwrapped(backbone.model)
    check_rebuilds(model, model_args, backbone.input_size, partial(features_of, out_index=backbone.out_index))
    source = filter_pretrained_cfg(model.pretrained_cfg, remove_source=True, remove_null=True)
    kept = {key: value for key, value in source.items() if key not in SOURCE_KEYS}
    return {
        "architecture": backbone.architecture,
        "num_classes": 0,
        "num_features": backbone.num_features,
        "model_args": model_args,
        "pretrained_cfg": {**kept, **backbone.data_config, "num_classes": 0, "custom_load": False},
    }


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """Our facts about a backbone: what the interface reads, and the preprocessing."""
    return {
        "interface": {"in_features": backbone.num_features, "out_index": backbone.out_index},
        "preprocessing": dict(backbone.data_config),
    }


def backbone_from_config(config: Mapping[str, Any], level: str) -> Backbone:
    """A backbone, with weights still to be loaded, from a checked ``config.json``.

    Raises:
        ComponentFileError: a value that is missing, of the wrong kind, or not allowed in a file.
    """
    ours = config[ROOT_KEY]
    architecture, args = checked_arguments(config)
    interface = _expect("interface", ours.get("interface"), dict)
    out_index = _expect("interface.out_index", interface.get("out_index"), int) if level == "map" else -1
    try:
        backbone = build_backbone(architecture, level=level, out_index=out_index, **args)
    except (BackboneError, ConfigError) as error:
        raise ComponentFileError(f"config.json: its backbone cannot be built here: {error}") from error
    preprocessing = checked_preprocessing(ours.get("preprocessing"))
    if preprocessing["input_size"][0] != backbone.input_size[0]:
        raise ComponentFileError(
            f"config.json: preprocessing: expected {backbone.input_size[0]} channels, got {preprocessing['input_size']}"
        )
    backbone.set_data_config(preprocessing)
    return backbone


def checked_arguments(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Architecture and timm's arguments of a ``config.json``: a name in timm's registry, and plain values in range.

    Raises:
        ComponentFileError: a source of weights, a path, a class, or a number that could only do harm.
    """
    args = _expect("model_args", config.get("model_args", {}), dict)
    architecture = _expect("architecture", config.get("architecture"), str)
    if ARCHITECTURE.fullmatch(architecture) is None:
        raise ComponentFileError(f"config.json: expected the name of a timm architecture, got {architecture!r:.80}")
    try:
        check_model_name(architecture)  # timm_compat's own entries in timm's registry open folders and repositories
    except BackboneError as error:
        raise ComponentFileError(f"config.json: its backbone cannot be built here: {error}") from error
    refused = sorted(RESERVED_ARGUMENTS & args.keys())
    if refused or not all(_is_plain(value) for value in args.values()):
        raise ComponentFileError(
            f"config.json: model_args: expected numbers, strings or short lists of them, got {refused or args!r:.200}"
        )
    for name, value in args.items():
        most = next((limit for part, limit in LIMITS.items() if part in name), MAX_NUMBER)
        if any(not abs(number) <= most for number in _numbers(value)):
            raise ComponentFileError(f"config.json: model_args: {name}: expected at most {most}, got {value!r:.80}")
    return architecture, args


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def checked_preprocessing(value: object) -> dict[str, Any]:
    """timm's six settings, each in range.

    Raises:
        ComponentFileError: one is missing, of the wrong kind, or out of range.
    """
    given = _expect("preprocessing", value, dict)
    try:
        size = tuple(_expect("preprocessing.input_size", side, int) for side in given["input_size"])
        mean, std = (tuple(float(number) for number in given[key]) for key in ("mean", "std"))
        crop_pct = float(given["crop_pct"])
        interpolation, crop_mode = str(given["interpolation"]), str(given["crop_mode"])
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ComponentFileError(f"config.json: preprocessing: expected timm's six settings, got {given}") from error
    fits = (
        len(size) == 3
        and 0 < size[0] <= MAX_CHANNELS
        and all(0 < side <= MAX_IMAGE_SIDE for side in size[1:])
        and len(mean) == len(std) == size[0]
        and math.prod(size) <= MAX_IMAGE_NUMBERS * min(1.0, crop_pct) ** 2
        and all(abs(number) <= LARGEST_MEAN for number in mean)
        and all(LEAST_STD <= number <= LARGEST_MEAN for number in std)
        and CROP_LIMITS[0] <= crop_pct <= CROP_LIMITS[1]
        and interpolation in INTERPOLATIONS
        and crop_mode in CROP_MODES
    )
    if not fits:
        raise ComponentFileError(f"config.json: preprocessing: expected values in range, got {given}")
    return {
        "input_size": size,
        "interpolation": interpolation,
        "mean": mean,
        "std": std,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }


def _expect(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ComponentFileError(f"config.json: {name}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= 1_000 and all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
