"""What is known about a component beyond its weights: licence, origin, training, results. Unknown ones are left out."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from timm_compat.errors import ComponentFileError, ConfigError

TRAINING_ACCURACY, CROSS_VALIDATION_ACCURACY = "training_accuracy", "cross_validation_accuracy"


@dataclass(frozen=True)
class Result:
    """One measured accuracy.

    Attributes:
        dataset: what it was measured on, such as "digits".
        accuracy: in [0, 1].
        split: of the data set.
        num_images: how many.
        partner: the other half where an extractor or a head was measured, such as a Hub id.
    """

    dataset: str
    accuracy: float
    split: str = "test"
    num_images: int | None = None
    partner: str | None = None

    def __post_init__(self) -> None:
        number = self.accuracy
        if _share(number) is None:
            raise ConfigError(f"accuracy: expected a number from 0 to 1, got {number!r:.80}")
        for name, given in (("dataset", self.dataset), ("split", self.split), ("partner", self.partner or "")):
            if not isinstance(given, str):
                raise ConfigError(f"{name}: expected a string, got {given!r:.80}")
        if self.num_images is not None and type(self.num_images) is not int:
            raise ConfigError(f"num_images: expected an integer, got {self.num_images!r:.80}")


@dataclass(frozen=True)
class Facts:
    """Facts for a component's card and ``config.json``; what is not given is left out.

    Attributes:
        license: an id that the Hub knows, such as "apache-2.0", or "other" with the next two.
        license_name: name of a licence that the Hub has no id for.
        license_link: URL of its text, or the name of a file in the repository.
        language: of class names and labels, such as "en".
        citation: how to cite it, such as a BibTeX entry.
        base_model: Hub id of the weights from which it was made.
        base_model_commit: their commit.
        datasets: ids or names of what it was trained on.
        results: measured accuracies.
        training: how it was trained, as JSON values: method, seed, epochs ...
        matrix: ``RecombinationMatrix.to_dict()``.
        member: this component's row (extractors) or column (heads) of the matrix.

    Raises:
        ConfigError: a member that the matrix does not have.

    Example:
        >>> facts = tc.Facts(license="apache-2.0", results=(tc.Result("digits", 0.98),))
        >>> facts.to_config()["metrics"][0]["accuracy"]
        0.98
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | None = None
    citation: str | None = None
    base_model: str | None = None
    base_model_commit: str | None = None
    datasets: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    matrix: Mapping[str, Any] | None = None
    member: str | None = None

    def __post_init__(self) -> None:
        if self.member is not None and self.matrix is not None:
            known = {*self.matrix["rows"], *self.matrix["columns"]}
            if self.member not in known:
                raise ConfigError(f"member: expected one of {', '.join(sorted(known))}, got {self.member!r}")

    @property
    def optimism(self) -> float:
        """A head's accuracy on images that it learned from, less that in cross-validation; 0 where it is not known."""
        seen, unseen = (_share(self.training.get(name)) for name in (TRAINING_ACCURACY, CROSS_VALIDATION_ACCURACY))
        return 0.0 if seen is None or unseen is None else max(0.0, seen - unseen)

    def to_config(self) -> dict[str, Any]:
        """JSON values; absent where unknown."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, (), {})}
        if "results" in values:
            values["metrics"] = [_known(result) for result in values.pop("results")]
        return values

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Facts":
        """The facts in our part of a ``config.json``.

        Raises:
            ComponentFileError: a fact of the wrong kind.
        """
        try:
            return cls(
                **{key: _text(key, config[key]) for key in TEXTS if config.get(key) is not None},
                datasets=tuple(_text("datasets", name) for name in _given("datasets", config, list)),
                results=tuple(Result(**result) for result in _given("metrics", config, list)),
                training=dict(_given("training", config, dict)),
                matrix=_matrix(config.get("matrix")),
            )
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ComponentFileError(f"config.json: expected facts about the component, got {error!r}") from error


TEXTS = (
    *("license", "license_name", "license_link", "language", "citation"),
    *("base_model", "base_model_commit", "member"),
)
KEYS = (*TEXTS, "datasets", "metrics", "training", "matrix")


def _share(value: Any) -> float | None:
    """A number from 0 to 1; None for anything else, which a ``config.json`` may hold."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 1 else None


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _given(key: str, config: Mapping[str, Any], kind: type) -> Any:
    return _of(kind, config.get(key, kind()))


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.80}")
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{key}: expected a string, got {value!r:.80}")
    return value


def _matrix(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    rows, columns = ([_text("matrix", name) for name in value[key]] for key in ("rows", "columns"))
    cells = [[None if cell is None else float(cell) for cell in row] for row in value["accuracy"]]
    native = value.get("native")
    if native is not None:
        native = [[bool(cell) for cell in _of(list, row)] for row in _of(list, native)]
        if [len(row) for row in native] != [len(row) for row in cells]:
            raise ValueError("matrix: native: expected one bool for every row and column")
    square = len(cells) == len(rows) and all(len(row) == len(columns) for row in cells)
    if not square or any(cell is not None and not math.isfinite(cell) for row in cells for cell in row):
        raise ValueError("matrix: expected one finite accuracy or null for every row and column")
    known = {} if native is None else {"native": native}
    return {**value, "rows": rows, "columns": columns, "accuracy": cells, **known}
