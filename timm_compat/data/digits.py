"""The handwritten digits that scikit-learn carries: real images that need no download."""

import torch

from timm_compat.data.arrays import ArrayDataset
from timm_compat.errors import ConfigError
from timm_compat.seeding import generator

SPLITS = ("train", "test")
TEST_SHARE = 0.25
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load_digits(split: str = "train") -> ArrayDataset:
    """1,797 digits of 8 x 8 grey pixels (Alpaydin and Kaynak, UCI 1998), split once and for all.

    Args:
        split: "train" (1,348 images) or "test" (449).

    Raises:
        ConfigError: another split.

    Example:
        >>> digits = tc.data.load_digits("test")
        >>> digits.images.shape, digits.class_names[:3]
        (torch.Size([449, 1, 8, 8]), ('0', '1', '2'))
    """
    from sklearn.datasets import load_digits as load

    if split not in SPLITS:
        raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    images, labels = load(return_X_y=True)
    pixels = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 8, 8) * (255 / 16)
    digits = ArrayDataset.from_arrays(pixels.round().to(torch.uint8), labels, CLASS_NAMES)
    order = torch.randperm(len(digits), generator=generator(0, "digits"))
    first_train = round(len(digits) * TEST_SHARE)
    return digits.subset(order[:first_train] if split == "test" else order[first_train:])
