"""Options that commands share: the network that runs, its model, images, where components are, a recipe."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.sources import load_dataset
from timm_compat.errors import ConfigError
from timm_compat.models.run_options import PRECISIONS, RunKeywords, RunOptions
from timm_compat.storage.source import Where
from timm_compat.vocabulary import check_class_names

LOGGER = "timm_compat.models.passes"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Device, batch size, precision, workers."""
    parser.add_argument("--device", metavar="NAME", help="cuda, cuda:1, mps or cpu (default: the best available)")
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images per batch (default: chosen for device, image size and network)",
    )
    parser.add_argument("--amp", choices=PRECISIONS, help="automatic mixed precision (default: float32)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that decode image files (default: %(default)s)"
    )


def run_options(options: argparse.Namespace) -> RunOptions:
    """Those options.

    Raises:
        ConfigError: one is out of range, or the device is not there.
    """
    return RunOptions(options.device, options.batch_size, options.amp, options.workers)


def run_keywords(options: argparse.Namespace) -> RunKeywords:
    """The same as keywords of functions that take them.

    Raises:
        ConfigError: one is out of range, or the device is not there.
    """
    given = run_options(options)
    return RunKeywords(device=given.device, batch_size=given.batch_size, amp=given.amp, workers=given.workers)


@contextmanager
def said_on_stderr() -> Iterator[None]:
    """For a block, print on standard error what the passes log (device, batch size, precision), each line once."""
    logger, handler = logging.getLogger(LOGGER), _OnStandardError()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(min(logging.INFO, level or logging.INFO))
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _OnStandardError(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.said:
            self.said.add(text)
            print(f"timm-compat: {text}", file=sys.stderr, flush=True)


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
        help=f"{whose} classes in the order of its logits, one per line or a JSON list (default: timm's own names)",
    )
    parser.add_argument(
        "--img-size", type=int, metavar="N", help=f"height and width of {whose} images in pixels (default: its own)"
    )
    parser.add_argument("--in-chans", type=int, metavar="N", help=f"channels of {whose} images (default: its own)")


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
    """Class names of a file: one per line, or a JSON list.

    Raises:
        ConfigError: no such file, or something else in it.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"class names: expected a text file, one name per line or a JSON list, got {error}"
        ) from error
    if text.lstrip().startswith(("[", "{")):
        try:
            names = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"class names: {file}: expected a JSON list of names, got {error}") from error
        if not isinstance(names, list):
            raise ConfigError(f"class names: {file}: expected a JSON list of names, got {type(names).__name__}")
        return check_class_names(names)
    return check_class_names(line.strip() for line in text.strip().splitlines())


def add_image_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Images, where and how many.

    Args:
        parser: gets the options.
        what: for the help text.
    """
    parser.add_argument("--images", metavar="DIR", help=f"{what}, or the name of a data set (with --root)")
    parser.add_argument("--root", metavar="DIR", help="folder of the data set, if --images is a name")
    parser.add_argument("--split", default="train", help="split of the data set (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="use at most N images")
    parser.add_argument("--skip-corrupt", action="store_true", help="in place of a damaged image read the next one")


def named_set(place: str, root: str | None, kind: str) -> tuple[str, str | None]:
    """Name and root for ``load_dataset``: a folder is a set of that kind, anything else is the name of one."""
    return (kind, place) if root is None and Path(place).is_dir() else (place, root)


def given_images(options: argparse.Namespace, channels: int | None) -> ArrayDataset | ImageDataset | None:
    """The images; None where none were asked for.

    Raises:
        DataError: there are none, or not of such a kind.
    """
    if options.images is None:
        return None
    name, root = named_set(options.images, options.root, "images")
    arguments: dict[str, Any] = {"limit": options.limit, "in_chans": channels, "skip_corrupt": options.skip_corrupt}
    return load_dataset(name, root, options.split, **arguments)


def add_place_options(parser: argparse.ArgumentParser, revision: bool = True) -> None:
    """Options of the Hub. The token comes from ``hf auth login`` or HF_TOKEN: others can see command lines."""
    if revision:
        parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the Hub repository")
        parser.add_argument("--subfolder", metavar="DIR", default="", help="subfolder of the repository or folder")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="cache folder of the Hub's client")
    parser.add_argument("--offline", action="store_true", help="read the local cache only; do not contact the Hub")


def place(options: argparse.Namespace) -> Where:
    """Those options as keywords of ``from_pretrained``."""
    where = Where(cache_dir=options.cache_dir, local_files_only=options.offline)
    if hasattr(options, "revision"):
        where |= Where(revision=options.revision, subfolder=options.subfolder)
    return where


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """The recipe, changes to it, and where results go."""
    parser.add_argument("recipe", type=Path, help="a YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="values to set or replace in the recipe, such as training.epochs=5",
    )
    parser.add_argument("--output", metavar="DIR", help="a new output folder, in place of the recipe's output_dir")
    parser.add_argument("--resume", action="store_true", help="continue the run that the output folder holds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
