"""Self-supervised tasks: one head over features for each, shared by every network of a space.

Something is done to an image, drawn from a few possibilities, and the shared head h must tell from the features z what
it was: L = CE(h(z), answer). That needs neither labels nor common classes. Rotation: Gidaris et al., ICLR 2018
(https://arxiv.org/abs/1803.07728), shared between networks by Gygli et al., AAAI 2021
(https://arxiv.org/abs/2004.03898). Location and flip beside it, shared by two domains: Sun et al. 2019
(https://arxiv.org/abs/1909.11825).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.errors import ImageError

NUM_ROTATIONS = 4
QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))  # below, right


@dataclass(frozen=True)
class SelfSupervisedTask:
    """What can be done to an image, as a task.

    Attributes:
        name: of the method of the space, and of its head.
        num_classes: number K of possible answers.
        change: images (n, C, H, W) and answers (n,) to changed images (n, C, H, W).
        starts_upright: whether answer 0 leaves an image as it is.
    """

    name: str
    num_classes: int
    change: Callable[[Tensor, Tensor], Tensor]
    starts_upright: bool


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


TASKS: Mapping[str, SelfSupervisedTask] = {
    task.name: task
    for task in (
        SelfSupervisedTask("rotation", NUM_ROTATIONS, rotate, starts_upright=True),
        SelfSupervisedTask("location", len(QUADRANTS), enlarge_quadrants, starts_upright=False),
        SelfSupervisedTask("flip", 2, turn_over, starts_upright=True),
    )
}


def shared_tasks(methods: Collection[str], fraction: float) -> tuple[str, ...]:
    """The tasks among a space's methods; none where no share of a batch is seen changed."""
    return tuple(name for name in TASKS if name in methods and fraction > 0)


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


def answer_losses(logits: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy (n,) of a shared head's logits (n, K) against the answers (n,)."""
    return F.cross_entropy(logits, answers, reduction="none")


def every_view(images: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """Images (n, C, H, W) as they are, then as the tasks change them, once for every further answer."""
    views = [images]
    for name in tasks:
        task = TASKS[name]
        for answer in range(int(task.starts_upright), task.num_classes):
            views.append(task.change(images, torch.full((len(images),), answer)))
    return views


def view_numbers(tasks: Sequence[str]) -> dict[str, Tensor]:
    """By task, which of ``every_view`` belongs to each of its answers: (K,)."""
    numbers, known = {}, 1
    for name in tasks:
        upright, num_classes = int(TASKS[name].starts_upright), TASKS[name].num_classes
        further = torch.arange(known, known + num_classes - upright)
        numbers[name] = torch.cat([torch.zeros(upright, dtype=torch.int64), further])
        known += len(further)
    return numbers
