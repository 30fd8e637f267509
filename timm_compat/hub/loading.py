"""Load a component of any role, fused models too, and download one into a folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from timm_compat.hub.fused import load_fused
from timm_compat.models.composed import CompatModel
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace
from timm_compat.storage.component import Component
from timm_compat.storage.files import (
    CARD_FILE,
    KNOWN_FILES,
    MAX_CARD_BYTES,
    PICTURE_FILE,
    ROOT_KEY,
    check_new_folder,
    new_folder,
)
from timm_compat.storage.reading import Files, open_files, pinned
from timm_compat.storage.source import Where

CLASSES: Mapping[str, Any] = {
    "extractor": CompatExtractor,
    "head": TaskHead,
    "space": CompatSpace,
    "model": CompatModel,
}
OPTIONAL_FILES = {CARD_FILE: MAX_CARD_BYTES, PICTURE_FILE: 16 * 2**20}


def read_facts(location: str | Path, **where: Unpack[Where]) -> tuple[dict[str, Any], Files]:
    """The checked ``config.json`` of a component of any role, without its weights.

    Raises:
        ComponentFileError, HubError: as ``from_pretrained``.
    """
    files = open_files(location, **where)
    return files.config(), files


def load(location: str | Path, **where: Unpack[Where]) -> Component | nn.Module:
    """Load a component of any role; a fused model becomes the plain timm model that it is.

    Raises:
        ComponentFileError, HubError: as ``from_pretrained``.

    Example:
        >>> type(tc.load("alice/digits-head")).__name__
        'TaskHead'
    """
    config, files = read_facts(location, **where)
    ours = config[ROOT_KEY]
    if ours.get("fused"):
        return load_fused(config, files)
    loaded: Component = CLASSES[ours["role"]].from_pretrained(location, **pinned(where, files))
    return loaded


def pull(location: str, folder: str | Path, **where: Unpack[Where]) -> Path:
    """Download a component into a new folder, with all checks of loading it.

    Raises:
        ComponentFileError, HubError: as ``from_pretrained``; nothing is left in the folder then.
        OutputExistsError: the folder holds something already.

    Example:
        >>> tc.pull("alice/digits-head", "digits-head").name
        'digits-head'
    """
    check_new_folder(folder)
    files = open_files(location, **where)
    load(location, **pinned(where, files))
    for name, most in OPTIONAL_FILES.items():
        if files.has(name):
            files.fetch(name, most)
    with new_folder(folder) as partial:
        for name in KNOWN_FILES:
            if (files.folder / name).is_file():
                shutil.copyfile(files.folder / name, partial / name)
    return Path(folder)
