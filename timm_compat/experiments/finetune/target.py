"""The target task: its images, and what is refused before anything is trained."""

from dataclasses import dataclass

from timm_compat.errors import DataError
from timm_compat.evaluation.cells import check_classes
from timm_compat.experiments.datasets import read_images
from timm_compat.experiments.finetune.recipe import TargetRecipe
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.training.members import Images

LEAST_IMAGES = 2


@dataclass(frozen=True)
class Target:
    """Images to learn from and images to measure on, of the same classes."""

    train: Images
    test: Images

    def seen_by(self, extractor: CompatExtractor) -> "Target":
        """The same with the number of channels that an extractor takes."""
        channels = extractor.backbone.input_size[0]
        if channels not in (1, 3):
            return self
        return Target(self.train.with_channels(channels), self.test.with_channels(channels))


def read_target(recipe: TargetRecipe, seed: int) -> Target:
    """Load both sets; a part or limit of them follows the seed unless the recipe gives one.

    Raises:
        CompatError: as the sources of data raise it.
        DataError: fewer than two images or two classes, or other classes in the test images.
    """
    target = Target(
        read_images("target.train", recipe.train, seed),
        read_images("target.test", recipe.test, seed),
    )
    if len(target.train) < LEAST_IMAGES:
        raise DataError(f"target.train: expected at least {LEAST_IMAGES} images to learn from, got {len(target.train)}")
    for key, images in (("train", target.train), ("test", target.test)):
        try:
            check_classes(images)
        except DataError as error:
            raise DataError(f"target.{key}: {error}") from error
    other = sorted(set(target.train.class_names) ^ set(target.test.class_names))
    if other:
        raise DataError(
            f"target.test: expected the classes of target.train, {', '.join(other[:5])} stand in one of them only; "
            "name them in classes"
        )
    return target


def check_head(key: str, head: TaskHead, target: Target) -> None:
    """Refuse a head that is of another task; target classes that it does not know are allowed.

    Raises:
        DataError: no class in common, or classes that the target lacks.
    """
    names = target.train.class_names
    lacking = [name for name in head.class_names if name not in names]
    if len(lacking) == head.num_classes:
        raise DataError(
            f"{key}: expected a head with classes of the target ({', '.join(names[:5])} ...), got one that knows none "
            f"of them ({', '.join(head.class_names[:5])} ...)"
        )
    if lacking:
        raise DataError(
            f"{key}: expected a head whose classes the target has, the target lacks {', '.join(lacking[:5])}; take "
            "target images of these classes too, or another head"
        )
