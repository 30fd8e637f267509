"""Fixed simplex: the shared head's class weights are equiangular unit vectors that are never trained.

Plain cross-entropy against K of the D + 1 vertices; the others wait for later classes. No weights need to be
exchanged. CoReS: Biondi et al., TPAMI 2023 (https://arxiv.org/abs/2111.07632).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from timm_compat.errors import ConfigError
from timm_compat.methods.common_classes import CommonClasses


class Simplex(CommonClasses):
    """A shared head that is never trained, (D + 1, D), without bias; its first K rows are the vocabulary's."""

    name = "simplex"
    is_trained = False

    def shapes(self, feature_dim: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Weight (D + 1, D)."""
        return {"weight": (feature_dim + 1, feature_dim)}

    def initial(self, key: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
        """The vertices."""
        return simplex_vertices(shape[1])

    def check_space(self, feature_dim: int, class_names: Sequence[str]) -> None:
        """Refuse more classes than vertices.

        Raises:
            ConfigError: no class, or too many.
        """
        super().check_space(feature_dim, class_names)
        if len(class_names) > feature_dim + 1:
            raise ConfigError(
                f"simplex: {feature_dim} dimensions hold at most {feature_dim + 1} equiangular classes, "
                f"got {len(class_names)}; raise feature_dim to at least {len(class_names) - 1}"
            )


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
