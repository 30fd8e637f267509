"""Labelled images, in memory and in files."""

from typing import TYPE_CHECKING

from timm_compat._lazy import attach

if TYPE_CHECKING:
    from timm_compat.data.array_files import load_digits as load_digits
    from timm_compat.data.arrays import ArrayDataset as ArrayDataset
    from timm_compat.data.image_dataset import ImageDataset as ImageDataset
    from timm_compat.data.sources import load_dataset as load_dataset

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "arrays": ["ArrayDataset"],
        "array_files": ["load_digits"],
        "image_dataset": ["ImageDataset"],
        "sources": ["load_dataset"],
    },
)
