"""Who learns what: images, classes and backbones of every member of a cell."""

from dataclasses import dataclass

import torch

import timm_compat as tc

# Classes of member A and B among ten.
OVERLAPS = {
    "10 of 10": (range(10), range(10)),
    "4 of 7": (range(7), range(3, 10)),
    "2 of 5": (range(5), range(3, 8)),
    "1 of 5": (range(5), range(4, 9)),
    "0 of 5": (range(5), range(5, 10)),
}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        root: folder with torchvision's CIFAR-10; scikit-learn's digits, which need none, if None.
        digits_root: folder with torchvision's MNIST and USPS, for the tables of several data sets.
        photos_root: folder of photos, ``caltech101`` and ``pacs`` in it, for the table of galleries.
        weights_root: folder with safetensors of timm's models, for the same.
        images: of every member, at most.
        test_images: that measure it, at most.
        epochs: of every training.
        batch_size: images a step and member.
        lr: highest value.
        backbones: of members A and B, and further ones for the table of architectures.
        mixed_precision: as in ``TrainConfig``.
    """

    root: str | None = None
    digits_root: str | None = None
    photos_root: str | None = None
    weights_root: str | None = None
    images: int = 3000
    test_images: int = 4000
    epochs: int = 6
    batch_size: int = 128
    lr: float = 5e-3
    backbones: tuple[str, ...] = ("test_byobnet", "test_efficientnet", "test_resnet", "test_convnext", "test_vit")
    mixed_precision: str = "no"

    def training(self, seed: int, **settings) -> tc.TrainConfig:
        """Settings of one training; photographs are shifted and mirrored, digits shifted a little."""
        photos = self.root is not None
        given = {
            "epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr,
            "random_crop": 4 if photos else 1, "hflip": 0.5 if photos else 0.0, "mixed_precision": self.mixed_precision,
        }  # fmt: skip
        return tc.TrainConfig(seed=seed, **{**given, **settings})


def load(scale: Scale, seed: int) -> tuple[tc.data.ArrayDataset, tc.data.ArrayDataset]:
    """Training images in an order of the seed, and the first test images."""
    if scale.root is None:
        train, test = tc.data.load_digits("train"), tc.data.load_digits("test")
    else:
        train, test = (tc.data.load_dataset("CIFAR10", scale.root, split) for split in ("train", "test"))
    return shuffled(train, seed), test.subset(torch.arange(min(len(test), scale.test_images)))


def shuffled(data: tc.data.ArrayDataset, seed: int) -> tc.data.ArrayDataset:
    """The same images in an order of the seed."""
    return data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)))


def first(data: tc.data.ArrayDataset, count: int) -> tc.data.ArrayDataset:
    """The first images, at most so many."""
    return data.subset(torch.arange(min(len(data), count)))


def own_images(scale: Scale, train: tc.data.ArrayDataset, overlap: str, seed: int) -> dict[str, tc.data.ArrayDataset]:
    """Disjoint images of members a and b, of each one's classes."""
    halves = train.halves(torch.Generator().manual_seed(seed))
    names = [[train.class_names[number] for number in numbers] for numbers in OVERLAPS[overlap]]
    return {
        member: first(half.of_classes(classes), scale.images)
        for member, half, classes in zip("ab", halves, names, strict=True)
    }


def extractor(backbone: str, space: tc.CompatSpace, data: tc.data.ArrayDataset, **arguments) -> tc.CompatExtractor:
    """A backbone for such images; side 32 at least, as the smallest of timm's networks ask for."""
    channels, side = data.images.shape[1], max(32, data.images.shape[-1])
    return tc.create_extractor(backbone, space, in_chans=channels, img_size=side, **arguments)
