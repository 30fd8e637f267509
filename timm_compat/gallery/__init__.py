"""Galleries: embeddings of an image folder that outlive their model. Build, search, upgrade, export."""

from typing import TYPE_CHECKING

from timm_compat._lazy import attach

if TYPE_CHECKING:
    from timm_compat.gallery.advice import UpgradePlan as UpgradePlan
    from timm_compat.gallery.advice import WayScores as WayScores
    from timm_compat.gallery.building import BuildReport as BuildReport
    from timm_compat.gallery.building import build as build
    from timm_compat.gallery.building import load as load
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

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "building": ["BuildReport", "build", "load"],
        "advice": ["UpgradePlan", "WayScores"],
        "planning": ["plan"],
        "records": ["Record", "from_qdrant", "read_records", "to_qdrant"],
        "searching": ["Gallery", "GallerySearch", "Hit"],
        "upgrading": ["UpgradeReport", "upgrade"],
    },
)
