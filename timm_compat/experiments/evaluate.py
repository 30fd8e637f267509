"""One evaluation from parts in folders to a report: matrix, baselines, retrieval, similarity, pictures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from torch import Tensor

from timm_compat.errors import ConfigError
from timm_compat.evaluation.answers import Images, sampled
from timm_compat.evaluation.baselines import BASELINES, Baseline, BaselineConfig, measure_baselines
from timm_compat.evaluation.matrix import measure
from timm_compat.evaluation.report import ComponentFacts, EvaluationReport, Retrieval
from timm_compat.evaluation.report_pictures import draw_pictures
from timm_compat.evaluation.retrieval import retrieve
from timm_compat.evaluation.scores import linear_cka
from timm_compat.experiments.parts import Parts
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.passes import DEFAULTS
from timm_compat.models.run_options import RunOptions
from timm_compat.storage.files import library_versions, tensors_sha256


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure besides the matrix.

    Attributes:
        cross_space: allow parts of different spaces.
        baselines: which; any of ``BASELINES``.
        retrieval: whether to measure retrieval among the extractors.
        pictures: whether to draw them, where Matplotlib is installed.
        seed: of the baselines.
        options: device, batch size, precision, workers, progress.

    Raises:
        ConfigError: an unknown baseline.
    """

    cross_space: bool = False
    baselines: tuple[str, ...] = ()
    retrieval: bool = False
    pictures: bool = True
    seed: int = 0
    options: RunOptions = DEFAULTS

    def __post_init__(self) -> None:
        unknown = [name for name in self.baselines if name not in BASELINES]
        if unknown:
            raise ConfigError(f"baselines: expected any of {', '.join(BASELINES)}, got {unknown[0]!r}")


def evaluate(
    parts: Parts,
    test: Images,
    config: EvaluateConfig | None = None,
    *,
    test_name: str = "the given images",
    train: Images | None = None,
    train_name: str = "",
    command: str = "",
    history: Sequence[Mapping[str, float]] = (),
    alone: Mapping[str, Any] | None = None,
) -> EvaluationReport:
    """Measure everything that the settings ask for; the test images pass every extractor once.

    What needs all features together (similarity, retrieval, baselines, pictures) takes 20,000 images of larger sets,
    evenly spread: memory does not grow with the set.

    Args:
        parts: extractors and heads.
        test: labelled images.
        config: settings; the defaults if None.
        test_name: what the report calls them.
        train: what baselines are fitted on.
        train_name: what the report calls it.
        command: the exact words that started this.
        history: of a training, for its curves.
        alone: ``EvaluationReport.to_dict()`` of the same networks trained without regard to compatibility, under the
            same names, measured on the same test images; for update gain and compatibility cost.

    Raises:
        ConfigError: baselines without ``train`` or with the test images as such, ``alone`` of other images or without
            a name in common, or parts of level "map" where features are compared.
        DataError: see ``recombination_matrix``.
        SpaceMismatchError: parts of different spaces, and ``cross_space`` is false.
    """
    start = time.perf_counter()
    config = config or EvaluateConfig()
    if config.baselines and train is None:
        raise ConfigError("baselines: expected images to fit them on, got none")
    is_pooled = all(extractor.space.level == "pooled" for extractor in parts.extractors.values())
    if config.retrieval and not is_pooled:
        raise ConfigError('retrieval: expected extractors of level "pooled", got level "map"')
    digest = test.digest()
    if config.baselines and train is not None and train.digest() == digest:
        raise ConfigError("baselines: expected training images apart from the test images, got the same")
    own_alone = {} if alone is None else _own_accuracies(alone, digest, parts)
    matrix, features = measure(
        parts.extractors, parts.heads, test,
        cross_space=config.cross_space, keep_features=is_pooled, options=config.options,
    )  # fmt: skip
    baselines: list[Baseline] = []
    if config.baselines and train is not None:
        baselines = measure_baselines(
            parts.extractors, parts.heads, train, test,
            names=config.baselines, config=BaselineConfig(seed=config.seed), cross_space=config.cross_space,
            test_features=features, options=config.options,
        )  # fmt: skip
    compared = sampled(test)
    data = {"name": test_name, "test_images": len(test), "test_sha256": digest}
    if len(compared) < len(test):
        data |= {"compared_images": len(compared)}
    if baselines and train is not None:
        data |= {"train_name": train_name, "train_images": len(train), "train_sha256": train.digest()}
    return EvaluationReport(
        matrix=matrix,
        baselines=baselines,
        cka=_similarities(features) if len(features) > 1 else None,
        retrieval=_retrieval(parts.extractors, features, compared.labels) if config.retrieval else None,
        components=_components(parts),
        data={**data, "classes": ", ".join(test.class_names)},
        command=command,
        versions=library_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - start,
        pictures=draw_pictures(matrix, baselines, features, compared, history) if config.pictures else {},
        alone=own_alone,
    )


def _own_accuracies(alone: Mapping[str, Any], digest: str, parts: Parts) -> dict[str, float]:
    try:
        found, images = alone["matrix"], alone["data"]["test_sha256"]
        cells = zip(found["rows"], found["accuracy"], found["native"], strict=True)
        own = {
            str(name): float(value)
            for name, values, native in cells
            for value, is_own in zip(values, native, strict=True)
            if is_own and value is not None and name in parts.extractors
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"alone: expected a report of timm-compat evaluate, got something else ({error!r})"
        ) from error
    if images != digest:
        raise ConfigError(
            "alone: expected a report on the same test images, got one on others; same --limit and --seed?"
        )
    if not own:
        raise ConfigError(f"alone: expected own accuracies of {', '.join(parts.extractors)}, got other names")
    return own


def _components(parts: Parts) -> list[ComponentFacts]:
    found = []
    for name, extractor in parts.extractors.items():
        facts = (extractor.space, extractor.digest(), extractor.architecture)
        found.append(_facts(parts, name, "extractor", *facts))
    for name, head in parts.heads.items():
        classes = f"{head.num_classes} classes: {', '.join(head.class_names[:10])}"
        description = classes + (" ..." if head.num_classes > 10 else "")
        found.append(_facts(parts, name, "head", head.space, tensors_sha256(head.state_dict()), description))
    return found


def _facts(parts: Parts, name: str, role: str, space: Any, digest: str, description: str) -> ComponentFacts:
    fingerprint = space.fingerprint if space.is_final else "draft"
    return ComponentFacts(name, role, parts.sources.get((role, name), "memory"), fingerprint, digest, description)


def _similarities(features: Mapping[str, Tensor]) -> Any:
    sides = list(features.values())
    values = np.eye(len(sides))
    for i, j in zip(*np.triu_indices(len(sides), 1), strict=True):
        values[i, j] = values[j, i] = linear_cka(sides[i], sides[j])
    return values


def _retrieval(extractors: Mapping[str, CompatExtractor], features: Mapping[str, Tensor], labels: Tensor) -> Retrieval:
    scores = {}
    for query, queries in features.items():
        for gallery, others in features.items():
            if queries.shape[1] == others.shape[1]:
                scores[query, gallery] = retrieve(queries, labels, others, labels, same_images=True)
    return Retrieval(tuple(extractors), scores)
