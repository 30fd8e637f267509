"""Fixed simplex: the shared head's class weights are equiangular unit vectors that are never trained.

Plain cross-entropy against K of the D + 1 vertices; the others wait for later classes. No weights need to be
exchanged. CoReS: Biondi et al., TPAMI 2023 (https://arxiv.org/abs/2111.07632).
"""

import torch
from torch import Tensor


def simplex_vertices(feature_dim: int) -> Tensor:
    """D + 1 unit vectors in D dimensions with pairwise cosine -1/D: (D + 1, D), float32.

    The construction is the d-Simplex of Pernici et al. 2021 (https://arxiv.org/abs/2103.15632): the D basis vectors
    and one multiple of the all-ones vector, centred and scaled to unit length.
    """
    d = float(feature_dim)
    extra = torch.full((1, feature_dim), (1 - (d + 1) ** 0.5) / d, dtype=torch.float64)
    vertices = torch.cat([torch.eye(feature_dim, dtype=torch.float64), extra])
    vertices = vertices - vertices.mean(dim=0)
    return (vertices / vertices.norm(dim=1, keepdim=True)).float()
