"""Scores beside the recombination matrix: over seeds, of retrieval, between two versions of a model."""

from typing import TYPE_CHECKING

from timm_compat._lazy import attach

if TYPE_CHECKING:
    from timm_compat.evaluation.predictions import negative_flip_rate as negative_flip_rate
    from timm_compat.evaluation.retrieval import RetrievalScores as RetrievalScores
    from timm_compat.evaluation.retrieval import retrieve as retrieve
    from timm_compat.evaluation.seeds import MatrixOverSeeds as MatrixOverSeeds
    from timm_compat.evaluation.seeds import over_seeds as over_seeds

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "predictions": ["negative_flip_rate"],
        "retrieval": ["RetrievalScores", "retrieve"],
        "seeds": ["MatrixOverSeeds", "over_seeds"],
    },
)
