"""Self-supervised tasks: one head over features for each, shared by every network of a space.

An image is changed in one of a few ways, and the shared head h predicts from the features z which one it was:
L = CE(h(z), answer). That needs neither labels nor common classes. Shared between networks by Gygli et al., AAAI 2021
(https://arxiv.org/abs/2004.03898), between two domains by Sun et al. 2019 (https://arxiv.org/abs/1909.11825), who also
have location and flip; rotation is by Gidaris et al., ICLR 2018 (https://arxiv.org/abs/1803.07728).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.config import LossConfig
from timm_compat.errors import ImageError
from timm_compat.methods.method import Losses, Method, Seen

NUM_ROTATIONS = 4
QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))  # below, right


@dataclass(frozen=True)
class SelfSupervisedTask(Method):
    """A change of an image, to be recognised by a shared head; ``register_method`` makes it available to spaces.

    Attributes:
        name: of the method, and of its head.
        num_classes: number K of possible answers.
        change: images (n, C, H, W) and answers (n,), from 0, to changed images (n, C, H, W).
        starts_upright: whether answer 0 leaves an image as it is.
        needs_square: whether images must be square.

    Example:
        >>> def negative(images, answers):
        ...     return torch.where(answers[:, None, None, None] == 1, -images, images)
        >>> task = tc.SelfSupervisedTask("negative", 2, negative)
        >>> task.change(torch.ones(2, 1, 1, 1), torch.tensor([0, 1])).flatten().tolist()
        [1.0, -1.0]
    """

    name: str
    num_classes: int
    change: Callable[[Tensor, Tensor], Tensor]
    starts_upright: bool = True
    needs_square: bool = False

    def shapes(self, feature_dim: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Weight (K, D) and bias (K,)."""
        return {"weight": (self.num_classes, feature_dim), "bias": (self.num_classes,)}

    def check_member(
        self, name: str, input_size: Sequence[int], class_names: Sequence[str] | None, vocabulary: Sequence[str]
    ) -> None:
        """Refuse images that are not square, where they must be.

        Raises:
            ImageError: the message says how to get square ones.
        """
        if self.needs_square and input_size[-1] != input_size[-2]:
            raise ImageError(
                f"member {name!r}: {self.name}: expected square images, got {tuple(input_size[-2:])}; "
                "set img_size to a square"
            )

    def weight(self, config: LossConfig) -> float:
        """Factor of the loss."""
        return config.self_supervised_weight

    def losses(self, head: Any, seen: Seen) -> Losses:
        """Cross-entropy of the shared head's logits against the answers."""
        asked = seen.asked[self.name]
        return F.cross_entropy(head(asked.features), asked.answers, reduction="none"), asked.count


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Every image (of (n, C, S, S)) turned by its number of quarter turns (n,).

    Raises:
        ImageError: images that are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ImageError(f"rotation: expected square images, got {tuple(images.shape[-2:])}; set img_size to a square")
    turned = images.clone()
    for quarter in range(1, NUM_ROTATIONS):
        where = (turns == quarter).nonzero().flatten().to(images.device)
        turned[where] = images[where].rot90(quarter, (2, 3))
    return turned


def enlarge_quadrants(images: Tensor, quadrants: Tensor) -> Tensor:
    """One quadrant of every image (of (n, C, H, W)), enlarged bilinearly to the whole size.

    Args:
        images: of odd sides, quadrants overlap in the middle row and column.
        quadrants: (n,): top left, top right, bottom left, bottom right.
    """
    height, width = images.shape[-2:]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    crops = images[..., :rows, :columns].clone()
    for number, (below, right) in enumerate(QUADRANTS):
        where = (quadrants == number).nonzero().flatten().to(images.device)
        top, left = below * (height - rows), right * (width - columns)
        crops[where] = images[where, :, top : top + rows, left : left + columns]
    return F.interpolate(crops, size=(height, width), mode="bilinear", align_corners=False)


def turn_over(images: Tensor, flips: Tensor) -> Tensor:
    """Every image (of (n, C, H, W)) whose number (n,) is 1 with its rows from bottom to top."""
    changed = images.clone()
    where = (flips == 1).nonzero().flatten().to(images.device)
    changed[where] = images[where].flip(2)
    return changed


ROTATION = SelfSupervisedTask("rotation", NUM_ROTATIONS, rotate, needs_square=True)
LOCATION = SelfSupervisedTask("location", len(QUADRANTS), enlarge_quadrants, starts_upright=False)
FLIP = SelfSupervisedTask("flip", 2, turn_over)


def draw_answers(size: int, fraction: float, num_classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of a batch, and a random answer for each of its images.

    Args:
        size: images of the batch.
        fraction: share of the batch, over 0 up to 1; at least one image.
        num_classes: of the task.
        random: decides.

    Returns:
        Places in the batch (n,) and answers (n,), n = round(fraction x size).
    """
    count = max(1, round(fraction * size))
    return torch.randperm(size, generator=random)[:count], torch.randint(num_classes, (count,), generator=random)


def every_view(images: Tensor, tasks: Sequence[SelfSupervisedTask]) -> list[Tensor]:
    """Images (n, C, H, W) as they are, then as the tasks change them, once for every further answer."""
    views = [images]
    for task in tasks:
        for answer in range(int(task.starts_upright), task.num_classes):
            views.append(task.change(images, torch.full((len(images),), answer)))
    return views


def view_numbers(tasks: Sequence[SelfSupervisedTask]) -> dict[str, Tensor]:
    """By task, which of ``every_view`` belongs to each of its answers: (K,)."""
    numbers, known = {}, 1
    for task in tasks:
        upright = int(task.starts_upright)
        further = torch.arange(known, known + task.num_classes - upright)
        numbers[task.name] = torch.cat([torch.zeros(upright, dtype=torch.int64), further])
        known += len(further)
    return numbers
