"""Location: the shared head tells which quadrant of an image was enlarged (Sun et al. 2019, arXiv 1909.11825)."""

from torch import Tensor
from torch.nn import functional as F

from timm_compat.methods.self_supervised import SelfSupervisedTask

QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))  # below, right


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


LOCATION = SelfSupervisedTask("location", len(QUADRANTS), enlarge_quadrants, starts_upright=False)
