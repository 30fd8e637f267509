"""Self-training of a linear map through frozen heads: two networks label images for each other.

A map W0, b0 from features x of a new network to features t of an old one gives every head h two opinions on an image.
Their sum is the image's label, a distribution over classes: y_h = softmax(h(t) + h(W0 x + b0)), the product of both
networks' probabilities, brought back to sum to 1, and

    W, b = argmin  mean over heads and images of CE(h(W x + b), y_h)  +  DECAY |(W - W0) diag(s)|^2

with s the standard deviations of x. Pseudo-labels: Lee, ICML workshop 2013; classifiers that label for each other:
Blum and Mitchell, COLT 1998 (https://doi.org/10.1145/279943.279962); products of experts: Hinton, 2002. What the head
reads is fitted to what both networks say, where a regression spends its effort on every direction alike. The likeliest
class instead of the distribution gains a little more where the networks are good, and loses where they are not.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

DECAY = 0.1
ITERATIONS = 30
LEAST_SCALE = 1e-6

Head = Callable[[Tensor], Tensor]


def self_trained(
    inputs: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, heads: Sequence[Head]
) -> tuple[Tensor, Tensor]:
    """The map after self-training by L-BFGS.

    Args:
        inputs: (n, F), the new network's features.
        targets: (n, D), the old network's.
        weight: (D, F), where to start.
        bias: (D,).
        heads: at least one, frozen: features (n, D) to logits (n, K).

    Returns:
        Weight (D, F) and bias (D,), on the inputs' device.
    """
    scale = inputs.std(dim=0).clamp(min=LEAST_SCALE)
    scaled, start = inputs / scale, inputs @ weight.T + bias
    labels = [F.softmax(head(targets) + head(start), dim=1) for head in heads]
    slope = torch.zeros(inputs.shape[1], targets.shape[1], device=inputs.device, requires_grad=True)
    shift = torch.zeros_like(bias, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, shift], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        features = start + scaled @ slope + shift
        terms = [F.cross_entropy(head(features), label) for head, label in zip(heads, labels, strict=True)]
        value = torch.stack(terms).mean() + DECAY * slope.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight + (slope.detach() / scale[:, None]).T, bias + shift.detach()
