"""Galleries: embeddings of an image folder that outlive their model. Build, search, upgrade, hand to a database."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm_compat.gallery.building import BuildReport as BuildReport
    from timm_compat.gallery.building import build as build
    from timm_compat.gallery.building import load as load
    from timm_compat.gallery.planning import UpgradePlan as UpgradePlan
    from timm_compat.gallery.planning import WayScores as WayScores
    from timm_compat.gallery.planning import plan as plan
    from timm_compat.gallery.records import Record as Record
    from timm_compat.gallery.records import from_qdrant as from_qdrant
    from timm_compat.gallery.records import read_records as read_records
    from timm_compat.gallery.records import to_qdrant as to_qdrant
    from timm_compat.gallery.searching import Gallery as Gallery
    from timm_compat.gallery.searching import GallerySearch as GallerySearch
    from timm_compat.gallery.searching import Hit as Hit
    from timm_compat.gallery.upgrading import UpgradeReport as UpgradeReport
    from timm_compat.gallery.upgrading import upgrade as upgrade

_HOMES = {
    "BuildReport": "building",
    "Gallery": "searching",
    "GallerySearch": "searching",
    "Hit": "searching",
    "Record": "records",
    "UpgradePlan": "planning",
    "UpgradeReport": "upgrading",
    "WayScores": "planning",
    "build": "building",
    "from_qdrant": "records",
    "load": "building",
    "plan": "planning",
    "read_records": "records",
    "to_qdrant": "records",
    "upgrade": "upgrading",
}

__all__ = [
    "BuildReport",
    "Gallery",
    "GallerySearch",
    "Hit",
    "Record",
    "UpgradePlan",
    "UpgradeReport",
    "WayScores",
    "build",
    "from_qdrant",
    "load",
    "plan",
    "read_records",
    "to_qdrant",
    "upgrade",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
