"""What one pass of a step sees, and how means stay those of the whole step however it is split."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Which images of a step's whole batch one forward pass holds: numbers offset, offset + stride, ... of it.

    Attributes:
        step: counted from 0.
        offset: number of the first.
        stride: distance of the next ones; the processes times the parts of a step.
    """

    step: int
    offset: int = 0
    stride: int = 1

    def places(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the chosen images (n,) of the whole batch are held here, and their places in this pass."""
        mine = ((chosen - self.offset) % self.stride == 0).nonzero().flatten()
        return mine, (chosen[mine] - self.offset) // self.stride


@dataclass(frozen=True)
class Batch:
    """Images of one source, a member's or the pool.

    Attributes:
        images: what the view takes, b images by framing, or features by network.
        labels: (b,), as the data set numbers its classes.
        step_labels: (batch_size,), labels of the step's whole batch over all processes.
    """

    images: dict[str, Tensor]
    labels: Tensor
    step_labels: Tensor


def mean_over_step(losses: Tensor, count: int, share: Share) -> Tensor:
    """Share of a pass in the mean over a step's whole batch: processes and accumulation average the passes.

    Args:
        losses: one an image of this pass.
        count: images that count in the whole step.
        share: which pass this is.
    """
    return losses.sum() * (share.stride / max(1, count))
