"""Options of the commands that take a timm model with its classifier: weights, class names, size."""

import argparse
import json
from pathlib import Path
from typing import Any

from timm_compat.errors import ConfigError
from timm_compat.vocabulary import check_class_names


def add_model_options(parser: argparse.ArgumentParser, whose: str = "the model's") -> None:
    """Weights, class names, image size and channels.

    Args:
        parser: gets the options.
        whose: for the help texts.
    """
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help=f"load {whose} weights from timm")
    weights.add_argument("--weights", metavar="FILE", help=f"{whose} weights: safetensors of the plain timm model")
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help=f"{whose} classes in the order of its logits, one name a line or a JSON list (default: what timm knows)",
    )
    parser.add_argument(
        "--img-size", type=int, metavar="N", help=f"pixels a side of {whose} images; its own if left out"
    )
    parser.add_argument("--in-chans", type=int, metavar="N", help=f"channels of {whose} images; its own if left out")


def model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Those options as keywords of ``split``, absent where nothing was given.

    Raises:
        ConfigError: a file of class names that cannot be read.
    """
    given = {name: getattr(options, name) for name in ("weights", "img_size", "in_chans")}
    names = None if options.class_names is None else read_class_names(options.class_names)
    found = {**given, "class_names": names, "pretrained": options.pretrained or None}
    return {name: value for name, value in found.items() if value is not None}


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Class names of a file: one a line, or a JSON list.

    Raises:
        ConfigError: no such file, or something else in it.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"class names: expected a text file, one name a line or a JSON list, got {error}") from error
    if text.lstrip().startswith(("[", "{")):
        try:
            names = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"class names: {file}: expected a JSON list of names, got {error}") from error
        if not isinstance(names, list):
            raise ConfigError(f"class names: {file}: expected a JSON list of names, got {type(names).__name__}")
        return check_class_names(names)
    return check_class_names(line.strip() for line in text.strip().splitlines())
