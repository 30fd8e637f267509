"""torchvision's classification sets by name, from files on disk; nothing is downloaded."""

import inspect
from pathlib import Path
from typing import Any

from torchvision import datasets

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.map_style import adopt
from timm_compat.errors import ConfigError, DataError

NAMES = (
    *("CIFAR10", "CIFAR100", "Caltech101", "Caltech256", "Country211", "DTD", "EuroSAT", "FER2013", "FGVCAircraft"),
    *("FashionMNIST", "Flowers102", "Food101", "GTSRB", "ImageNet", "Imagenette", "KMNIST", "LFWPeople", "MNIST"),
    *("OxfordIIITPet", "Places365", "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS"),
)
TRAIN_WORDS = ("train", "training")
TEST_WORDS = ("test", "val", "valid", "validation", "eval")
WHOLE_WORDS = ("train", "all")  # for a set without a split of its own

# torchvision names the splits of these otherwise, and has no "train".
_TRAIN_SPLITS = {"OxfordIIITPet": "trainval", "Places365": "train-standard"}


def load_torchvision(name: str, root: Path, split: str, *, skip_corrupt: bool = False) -> ArrayDataset | ImageDataset:
    """A set of ``NAMES``, of the split that torchvision knows under this name.

    Args:
        name: spelt as torchvision does.
        root: as the torchvision class takes it.
        split: "train" or "test"; "val" and others where torchvision has them.
        skip_corrupt: see ``ImageDataset``.

    Raises:
        ConfigError: a split that the set does not have.
        DataError: files are missing or damaged, or the split has no labels.
    """
    maker = getattr(datasets, name)
    arguments = _arguments(name, maker, split)
    try:
        source = maker(root, **arguments)
    except (OSError, RuntimeError, ImportError, ValueError, AssertionError) as error:
        if isinstance(error, ValueError) and "split" in arguments:
            raise ConfigError(f"split: {name}: {error}") from error
        way_out = _way_out(name, root, arguments)
        raise DataError(f"{name}: expected its files in {root}, where torchvision says: {error}{way_out}") from error
    return adopt(source, skip_corrupt=skip_corrupt)


def check_split(split: str, expected: tuple[str, ...]) -> None:
    """Refuse a word that names no split.

    Raises:
        ConfigError: it is not among those expected.
    """
    if split not in expected:
        raise ConfigError(f"split: expected one of {', '.join(expected)}, got {split!r}")


def _arguments(name: str, maker: Any, split: str) -> dict[str, Any]:
    parameters = inspect.signature(maker).parameters
    chosen: dict[str, Any] = {"download": False} if "download" in parameters else {}
    if "split" in parameters:
        return {**chosen, "split": _TRAIN_SPLITS.get(name, split) if split == "train" else split}
    if "train" in parameters:
        check_split(split, TRAIN_WORDS + TEST_WORDS)
        return {**chosen, "train": split in TRAIN_WORDS}
    if split not in WHOLE_WORDS:
        raise ConfigError(
            f"split: {name} has none of its own: expected one of {', '.join(WHOLE_WORDS)}, got {split!r}; "
            'see part, such as part="1/5"'
        )
    return chosen


def _way_out(name: str, root: Path, arguments: dict[str, Any]) -> str:
    if "download" not in arguments:
        return ""
    given = "".join(f", {key}={value!r}" for key, value in arguments.items() if key != "download")
    return f"; to fetch them: torchvision.datasets.{name}({str(root)!r}{given}, download=True)"
