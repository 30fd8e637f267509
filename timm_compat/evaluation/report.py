"""The results of an evaluation and how it was made; ``report_text`` turns them into text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from timm_compat.evaluation.baselines import Baseline
from timm_compat.evaluation.intervals import CONFIDENCE, bootstrap_interval
from timm_compat.evaluation.matrix import RecombinationMatrix, json_numbers
from timm_compat.evaluation.retrieval import RetrievalScores
from timm_compat.evaluation.scores import (
    POINTS,
    Array,
    average_accuracy,
    average_compatibility,
    backward_compatibility,
    compatibility_cost,
    forward_compatibility,
    gap_points,
    mean_of_measured,
    update_gain,
)

SCHEMA = 1


@dataclass(frozen=True)
class ComponentFacts:
    """What is known of a part that took part.

    Attributes:
        name: in the matrix.
        role: "extractor" or "head".
        source: where it came from.
        space: fingerprint, or "draft".
        sha256: over its weights and statistics.
        description: architecture, or class names.
    """

    name: str
    role: str
    source: str
    space: str
    sha256: str
    description: str


@dataclass(frozen=True)
class Retrieval:
    """Retrieval among extractors of one space.

    Attributes:
        names: of the extractors.
        scores: by (query's extractor, gallery's extractor).
    """

    names: tuple[str, ...]
    scores: Mapping[tuple[str, str], RetrievalScores]


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that goes into the report.

    Attributes:
        matrix: with its predictions.
        baselines: measured on the same test images.
        cka: linear CKA between extractors' features of the test images, (rows, rows); None if not measured.
        retrieval: None if not measured.
        components: where the parts came from.
        data: facts of the test images, and of those that the baselines were fitted on.
        command: the exact words that made this.
        versions: of the libraries.
        created: date and time, UTC.
        seconds: wall time.
        pictures: PNG by file name, with a caption each.
        alone: by extractor's name, own accuracy on the same test images of the same network trained without regard to
            compatibility.
    """

    matrix: RecombinationMatrix
    baselines: Sequence[Baseline]
    cka: Array | None
    retrieval: Retrieval | None
    components: Sequence[ComponentFacts]
    data: Mapping[str, Any]
    command: str
    versions: Mapping[str, str]
    created: str
    seconds: float
    pictures: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)
    alone: Mapping[str, float] = field(default_factory=dict)

    def scores(self) -> dict[str, float]:
        """The scores of the matrix; accuracies and errors in [0, 1], gaps in percentage points, NaN if undefined."""
        matrix, others = self.matrix, ~self.matrix.native
        low, high = bootstrap_interval(matrix.accuracy[others])
        found = {
            "native": matrix.native_accuracy,
            "recombined": matrix.recombined_accuracy,
            "recombined_low": low,
            "recombined_high": high,
            "chance": float(np.mean(matrix.chance)),
            "compatibility": mean_of_measured(matrix.compatibility[others]),
            "gap_points": mean_of_measured(gap_points(matrix.accuracy, matrix.native)[others]),
        }
        if matrix.predictions is not None:
            found |= {
                "negative_flip_rate": mean_of_measured(matrix.negative_flips()[others]),
                "relative_negative_flip_rate": mean_of_measured(matrix.negative_flips(relative=True)[others]),
                "calibration_error_native": mean_of_measured(matrix.calibration_errors()[matrix.native]),
                "calibration_error_recombined": mean_of_measured(matrix.calibration_errors()[others]),
            }
        if matrix.rows == matrix.columns and len(matrix.rows) > 1:
            found |= {
                "average_compatibility": average_compatibility(matrix.accuracy),
                "average_accuracy": average_accuracy(matrix.accuracy),
                "backward_compatibility": backward_compatibility(matrix.accuracy),
                "forward_compatibility": forward_compatibility(matrix.accuracy),
            }
        stitched = [baseline for baseline in self.baselines if baseline.name == "stitching"]
        if stitched:
            gaps = gap_points(np.where(matrix.native, matrix.accuracy, stitched[0].accuracy), matrix.native)
            found["stitching_penalty_of_baseline"] = mean_of_measured(gaps[others]) / POINTS
        return found | (self._against_alone() if self.alone else {})

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN is null."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "created": self.created,
            "seconds": self.seconds,
            "versions": dict(self.versions),
            "data": dict(self.data),
            "components": [asdict(component) for component in self.components],
            "matrix": self.matrix.to_dict(),
            "scores": {name: None if np.isnan(value) else value for name, value in self.scores().items()},
            "scores_confidence": CONFIDENCE,
            "compatibility": json_numbers(self.matrix.compatibility),
            "negative_flips": self._measured("negative_flips"),
            "calibration_errors": self._measured("calibration_errors"),
            "baselines": [baseline.to_dict() for baseline in self.baselines],
            "cka": None if self.cka is None else json_numbers(self.cka),
            "retrieval": self._retrieval(),
            "alone": dict(self.alone),
        }

    def _against_alone(self) -> dict[str, float]:
        matrix = self.matrix
        own = {
            row: float(matrix.accuracy[i, matrix.native[i]][0])
            for i, row in enumerate(matrix.rows)
            if matrix.native[i].any()
        }
        known = [name for name in own if name in self.alone]
        costs = [compatibility_cost(self.alone[name], own[name]) for name in known]
        found = {"compatibility_cost": mean_of_measured(np.array(costs))}
        if matrix.rows == matrix.columns:
            indices = [matrix.rows.index(name) for name in known]
            gains = [
                update_gain(matrix.accuracy[new, old], matrix.accuracy[old, old], self.alone[matrix.rows[new]])
                for new in indices
                for old in range(new)
            ]
            found["update_gain"] = mean_of_measured(np.array(gains))
        return found

    def _measured(self, name: str) -> Any:
        return None if self.matrix.predictions is None else json_numbers(getattr(self.matrix, name)())

    def _retrieval(self) -> Any:
        if self.retrieval is None:
            return None
        return [
            {"queries": queries, "gallery": gallery, **asdict(scores)}
            for (queries, gallery), scores in self.retrieval.scores.items()
        ]
