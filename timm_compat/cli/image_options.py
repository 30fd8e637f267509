"""Images on the command line: a folder of them, or a data set by name; options where labels do not count."""

import argparse
from pathlib import Path
from typing import Any

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.sources import load_dataset


def add_image_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Images, where and how many.

    Args:
        parser: gets the options.
        what: for the help text.
    """
    parser.add_argument("--images", metavar="DIR", help=f"{what}, or the name of a data set (with --root)")
    parser.add_argument("--root", metavar="DIR", help="where the data set is, if --images is a name")
    parser.add_argument("--split", default="train", help="of the data set (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="use at most so many images")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be decoded")


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
