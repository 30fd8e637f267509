"""Focal distillation: the new model keeps to the old one's outputs, most of all where the old one is right.

L = (alpha + beta [old correct]) KL(softmax(old / T) || softmax(new / T)) T^2, against negative flips: images that the
old model classified correctly and the new one does not. Yan et al., CVPR 2021 (https://arxiv.org/abs/2011.09161).
"""

from torch import Tensor
from torch.nn import functional as F

ALPHA, BETA = 1.0, 5.0


def focal_distillation_losses(
    logits: Tensor, old_logits: Tensor, old_correct: Tensor, *, alpha: float = ALPHA, beta: float = BETA, t: float = 1.0
) -> Tensor:
    """The loss of every image (B,).

    Args:
        logits: (B, K) of the new model.
        old_logits: (B, K) of the old one, over the same classes.
        old_correct: (B,), whether the old model is right.
        alpha: weight of every image.
        beta: what is added to it where the old model is right.
        t: temperature of both.
    """
    log_new, log_old = F.log_softmax(logits / t, dim=1), F.log_softmax(old_logits / t, dim=1)
    divergence = F.kl_div(log_new, log_old, log_target=True, reduction="none").sum(dim=1) * t**2
    return (alpha + beta * old_correct) * divergence
