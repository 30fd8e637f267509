"""The types of a recipe's values, and the decorator that makes a class one of its models."""

import contextlib
import dataclasses
import functools
import math
import re
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Protocol, TypeVar

import pydantic.dataclasses
import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import dataclass_transform

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError
from timm_compat.recipes.nodes import STR, TAG
from timm_compat.vocabulary import normal_name

# Keywords of create_extractor that have a key of their own in a member, or that the recipe as a whole decides.
OWN_KEYS = ("model", "space", "pretrained", "trainable", "out_index", "img_size", "crop_pct")

_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9](_?[0-9]){0,30})")  # YAML 1.1 and 1.2 disagree about 010
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # a string in YAML 1.1 where the point is missing
SUBJECT = re.compile(r"([A-Za-z_][\w.]*): ")  # the key that a message is about, where it starts with one
# What pydantic's kinds of errors expected: by the whole word first, then by the word's beginning.
_EXPECTED = {
    "greater_than_equal": "a number of at least {ge:g}",
    "greater_than": "a number over {gt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "less_than": "a number under {lt:g}",
    "too_long": "a list of {max_length}",
    "literal": "{expected}",
    "missing": "a value",
    "unexpected_keyword_argument": "no such key",
    "string_pattern_mismatch": "a string that is not blank",
    "int": "an integer",
    "float": "a finite number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a string",
    "tuple": "a list",
    "dataclass": "a mapping",
    "mapping": "a mapping",
    "dict": "a mapping",
}

Model = TypeVar("Model")


class Named(Protocol):
    """What has a name among others of its kind."""

    @property
    def name(self) -> str:
        """By which it is called."""


class Scalar(str):
    """A scalar of a YAML file as it is written there: `no`, `01` and `1e3` stay so where a string is asked for."""

    node: yaml.ScalarNode

    @classmethod
    def of(cls, node: yaml.ScalarNode) -> "Scalar":
        """The scalar that a node holds."""
        made = cls(node.value)
        made.node = node
        return made


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def recipe(model: type[Model]) -> type[Model]:
    """A class as a frozen pydantic dataclass that refuses unknown keys; made by hand, it raises ConfigError too."""
    made: Any = model
    if hasattr(model, "mistakes"):
        made.__post_init__ = _refuse_mistakes
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    made = pydantic.dataclasses.dataclass(made, frozen=True, config=config)
    construct = made.__init__
    names = [field.name for field in dataclasses.fields(made)]

    @functools.wraps(construct)
    def checked(self: Model, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            lines = [line for found in error.errors() for line in _lines(found, names)]
            raise ConfigError("\n".join(lines)) from error

    made.__init__ = checked
    return typing.cast(type[Model], made)


def _lines(error: Any, names: Sequence[str]) -> list[str]:
    """A mistake in what was made by hand; arguments without a keyword have a number in place of a name."""
    first, *others = error["loc"] or [""]
    keys = [names[first] if isinstance(first, int) else first, *others]
    path = ".".join(str(key) for key in keys if str(key).isalnum() or str(key).isidentifier())
    ours = error.get("ctx", {}).get("error")
    if ours is None:
        got = "nothing" if error["type"] == "missing" else f"{error['input']!r:.80}"
        return [f"{path}: expected {expectation(error)}, got {got}"]
    lines = str(ours).split("\n")
    return [f"{path}{'.' if SUBJECT.match(line) else ': '}{line}" if path else line for line in lines]


def _refuse_mistakes(made: Any) -> None:
    if lines := list(made.mistakes()):
        raise ConfigError("\n".join(lines))


def expectation(error: Any) -> str:
    """What was expected where pydantic found an error, in our words.

    Args:
        error: one of ``ValidationError.errors()``.
    """
    kind = error["type"]
    if kind == "missing" and isinstance(error["loc"][-1], int):
        return "a longer list"
    expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0]) or error["msg"]
    return str(expected).format(**error.get("ctx", {}))


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Marks a string that must be one of these names; a function says which there are when a recipe is read."""

    names: Collection[str] | Callable[[], Collection[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self._known())}

    def _known(self) -> Collection[str]:
        return self.names() if callable(self.names) else self.names

    def _check(self, name: str) -> str:
        if name not in self._known():
            raise ConfigError(f"expected one of {', '.join(self._known())}, got {name!r}")
        return name


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise ConfigError(f"expected a name of letters, digits and _ that starts with no digit, got {name!r}")
    return name


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names in Unicode's form NFC.

    Raises:
        ConfigError: a name that comes twice.
    """
    names = tuple(map(normal_name, names))
    counts = Counter(names)
    if twice := [name for name in counts if counts[name] > 1]:
        raise ConfigError(f"expected every name once, got {twice[0]!r} twice")
    return names


def repeated(key: str, items: Iterable[Named], others: Iterable[Named] = ()) -> Iterator[str]:
    """The mistake of each item whose name was that of another one before, or of one of the others."""
    seen = {other.name for other in others}
    for position, item in enumerate(items):
        if item.name in seen:
            yield f"{key}.{position}.name: expected every name once, got {item.name!r} twice"
        seen.add(item.name)


def _normal(names: Mapping[str, str]) -> dict[str, str]:
    return {normal_name(old): normal_name(new) for old, new in names.items()}


def _keywords(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords with values that YAML can hold: scalars, or lists of scalars (a tuple becomes a list)."""
    found = {}
    for key, value in arguments.items():
        several = isinstance(value, (list, tuple))
        plain = [plain_scalar(key, item) for item in (value if several else [value])]
        found[key] = plain if several else plain[0]
    return found


def _arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    for key in arguments:
        if not key.isidentifier():
            raise ConfigError(f"expected keywords of timm, got {key!r}")
        if key in OWN_KEYS:
            raise ConfigError(f"{key}: is no argument of the architecture; it has its own key in the recipe")
    return _keywords(arguments)


def _as_written(training: TrainConfig) -> TrainConfig:
    """Paths as strings, and tuples among arguments as lists: what YAML can hold."""
    found: dict[str, Any] = {}
    for name, value in vars(training).items():
        if isinstance(value, PurePath):
            found[name] = str(value)
        elif isinstance(value, Mapping):
            try:
                found[name] = _keywords(value)
            except ConfigError as error:
                raise ConfigError(f"{name}.{error}") from error
    return dataclasses.replace(training, **found)


def plain_scalar(key: str, value: Any) -> Any:
    """A value of no certain type, read as YAML 1.2 reads it: a string, a number, true, false or null.

    Raises:
        ConfigError: anything else, such as a mapping, infinity, or 017 about which YAML's versions disagree.
    """
    found = _resolved(key, value.node) if isinstance(value, Scalar) else value
    if found is not None and not isinstance(found, (str, bool, int, float)):
        raise ConfigError(
            f"{key}: expected a string, a number, true, false, null or a list of these, got {value!r:.80}"
        )
    if isinstance(found, float) and not math.isfinite(found):
        raise ConfigError(f"{key}: expected a finite number, got {value!r}")
    return found


def _resolved(key: str, node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.tag == f"{TAG}bool":
        return _SWITCHES[text.lower()]
    if node.tag == f"{TAG}int" and _INTEGER.fullmatch(text):
        return int(text)
    with contextlib.suppress(ValueError):  # YAML's .inf, .nan and 1:30.5
        if node.tag == f"{TAG}float" or (node.tag == STR and node.style is None and _EXPONENT.fullmatch(text)):
            return float(text)
    if node.tag in (f"{TAG}int", f"{TAG}float"):
        raise ConfigError(f"{key}: expected a finite number, or a string in quotes, got {text:.80}")
    return text


Text = Annotated[str, Field(pattern=r"\S")]
Name = Annotated[str, AfterValidator(_identifier)]
Names = Annotated[tuple[Text, ...], AfterValidator(unique)]
Renaming = Annotated[Mapping[Text, Text], AfterValidator(_normal)]
Arguments = Annotated[Mapping[str, Any], AfterValidator(_arguments)]
Training = Annotated[TrainConfig, AfterValidator(_as_written)]
Count = Annotated[int, Field(ge=1)]
Folder = Annotated[Text, BeforeValidator(lambda value: str(value) if isinstance(value, PurePath) else value)]
Side = Count | tuple[Count, Count]
