"""Linear CKA: how alike two networks represent the same images, whatever the rotation and scale of their features.

CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|) with centred columns and Frobenius norms; Kornblith et al., ICML 2019
(https://arxiv.org/abs/1905.00414), eq. 3 and table 1.
"""

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Similarity in [0, 1] of features (n, F) and (n, D) of the same n images; NaN where one side does not vary."""
    x, y = (features.double() - features.double().mean(dim=0) for features in (x, y))
    within = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x).square() / within)
