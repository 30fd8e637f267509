"""Options of the commands that read components from folders or the Hub."""

import argparse
from pathlib import Path

from timm_compat.storage.source import Where


def add_place_options(parser: argparse.ArgumentParser, revision: bool = True) -> None:
    """Options that say where on the Hub. A token is taken from ``hf auth login`` or HF_TOKEN: lines are seen by all."""
    if revision:
        parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the Hub repository")
        parser.add_argument("--subfolder", metavar="DIR", default="", help="of the repository or folder")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="of the Hub's client")
    parser.add_argument("--offline", action="store_true", help="read the cache, ask nobody")


def place(options: argparse.Namespace) -> Where:
    """Those options as keywords of ``from_pretrained``."""
    where = Where(cache_dir=options.cache_dir, local_files_only=options.offline)
    if hasattr(options, "revision"):
        where |= Where(revision=options.revision, subfolder=options.subfolder)
    return where
