"""A recipe from a YAML file or text, with overrides; all mistakes in it are reported at once, each with its line.

A refusal is a line for each mistake: ``FILE:LINE: key.key: expected ..., got ...``. Nothing is guessed: a word is a
string where a string is asked for ("no", "01", "2001-01-01"), and only there.
"""

import typing
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from timm_compat.config import RENAMED
from timm_compat.errors import ConfigError
from timm_compat.recipes.nodes import MAX_BYTES, NULL, STR, TAG, apply_override, close_match, compose, item_name
from timm_compat.recipes.values import SUBJECT, Scalar, expectation

MAX_VALUES = 500_000  # aliases can make a small file a huge recipe
MOST_TOLD = 20

_KINDS = ("str", "null", "bool", "int", "float", "map", "seq", "timestamp", "merge", "value")
_KNOWN_TAGS = {f"{TAG}{kind}" for kind in _KINDS}
_MOST_SHOWN = 60

Keys = Sequence[str | int]
Kind = TypeVar("Kind")


def read_recipe(kind: type[Kind], path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """Read a recipe from a YAML file.

    Args:
        kind: of the recipe, such as ``Recipe`` or ``AdaptRecipe``.
        path: of the file, UTF-8, at most 1 MiB.
        overrides: strings "PATH=VALUE" that set or replace values before anything is checked: "training.epochs=3",
            "members.a.backbone=resnet18" (a member by its name, or by its number from 0), "space.methods=[rotation]".

    Raises:
        ConfigError: no such file, or the mistakes in it, each with file and line; for an override, with its text.

    Example:
        >>> from pathlib import Path
        >>> member = "{name: a, backbone: test_vit, data: {dataset: digits}}"
        >>> Path("recipe.yaml").write_text(f"{{space: {{}}, members: [{member}]}}") > 0
        True
        >>> recipe = tc.experiments.read_recipe(tc.experiments.Recipe, "recipe.yaml", ["training.epochs=3"])
        >>> recipe.members[0].backbone, recipe.training.epochs
        ('test_vit', 3)
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a recipe, a YAML file, but it cannot be read ({error})") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: expected a recipe of at most {MAX_BYTES} bytes, got more")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: expected UTF-8 text, got something else; save it as UTF-8") from error
    return recipe_from_text(kind, text, str(path), overrides)


def recipe_from_text(kind: type[Kind], text: str, name: str = "<recipe>", overrides: Sequence[str] = ()) -> Kind:
    """Read a recipe from YAML text.

    Args:
        kind: as in ``read_recipe``, as ``overrides``.
        text: the whole recipe.
        name: where it comes from, for messages.
        overrides: changes to it.

    Raises:
        ConfigError: the mistakes, each with name and line; for an override, with its text.
    """
    root = compose(text, name)
    for override in overrides:
        root = apply_override(root, override)
    document = _Document(root)
    value = document.value_of(root, ())
    try:
        made = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        document.note(kind, error)
        document.refuse()
        raise
    document.refuse()
    return made


class _Document:
    """A tree of nodes, and the mistakes that were found in it."""

    def __init__(self, root: yaml.Node) -> None:
        self.root = root
        self.count = 0
        self.mistakes: list[tuple[yaml.Node, str]] = []
        self.odd: set[tuple[str, ...]] = set()  # places whose value is none of YAML's plain ones

    def value_of(self, node: yaml.Node, keys: Keys, above: tuple[yaml.Node, ...] = ()) -> Any:
        """Mappings, lists, ``Scalar`` and None: what the models are made of.

        Raises:
            ConfigError: more values than a recipe may have.
        """
        self.count += 1
        if self.count > MAX_VALUES:
            self._tell_odd(node, keys, f"expected at most {MAX_VALUES} values, got more; do aliases stand for aliases?")
            self.refuse()
        self._is_plain(node, keys)
        if any(node is one for one in above):
            self._tell_odd(node, keys, "expected an alias of something else than what it stands in")
            return None
        above = (*above, node)
        if isinstance(node, yaml.MappingNode):
            return {key: self.value_of(value, (*keys, key), above) for key, value in self._pairs(node, keys)}
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(item, (*keys, position), above) for position, item in enumerate(node.value)]
        return None if node.tag == NULL else Scalar.of(typing.cast(yaml.ScalarNode, node))

    def _pairs(self, node: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, yaml.Node]]:
        first: dict[str, str] = {}
        for key, value in node.value:
            if not self._is_plain(key, keys):
                continue
            if not isinstance(key, yaml.ScalarNode):
                self._tell_odd(key, keys, f"expected a word as a key, got {_show(key)}")
            elif key.value in first:
                message = f"expected every key once, got it a second time (first: {first[key.value]})"
                self._tell_odd(key, (*keys, key.value), message)
            else:
                first[key.value] = key.start_mark.name
                yield key.value, value

    def _is_plain(self, node: yaml.Node, keys: Keys) -> bool:
        if node.tag in _KNOWN_TAGS:
            return True
        self._tell_odd(node, keys, f"expected plain YAML, got the tag {node.tag.replace(TAG, '!!')!r}; drop it")
        return False

    def _tell_odd(self, place: yaml.Node, keys: Keys, message: str) -> None:
        path = _walk(self.root, keys)[2]
        self.odd.add(path)
        self._tell(place, path, message)

    def _tell(self, place: yaml.Node, path: Sequence[str], message: str) -> None:
        line = ": ".join([place.start_mark.name, *([".".join(path)] if path else []), message])
        self.mistakes.append((place, "\\n".join(line.splitlines())))

    def note(self, kind: Any, refused: ValidationError) -> None:
        """Take down what pydantic found."""
        types: dict[tuple[str, ...], list[Any]] = {}
        for error in refused.errors():
            keys = error["loc"]
            place, value, path = _walk(self.root, keys)
            if path in self.odd:
                continue
            if error["type"] == "missing" and isinstance(keys[-1], str):
                self._tell(value, (*path, str(keys[-1])), "expected a value, got nothing; this key is required")
            elif error["type"] == "unexpected_keyword_argument":
                known = list(typing.get_type_hints(_model_at(kind, keys[:-1])))
                now = RENAMED.get(path[-1])
                hint = f"it is called {now} now" if now and now.split()[0] in known else close_match(path[-1], known)
                self._tell(place, path, f"unknown key; {hint}")
            elif isinstance(error.get("ctx", {}).get("error"), ConfigError):
                self._note_ours(str(error["ctx"]["error"]), place, value, path)
            else:
                types.setdefault(path, []).append((place, value, error))
        for path, errors in types.items():
            # Of a union, all that it allows at one place; only what is wrong within a list, where it allows a list.
            if not any(other != path and other[: len(path)] == path for other in types):
                # What is of the right type says more than the other types of a union.
                place, value, _ = errors[0]
                kinds = [error for _, _, error in errors]
                kinds = [error for error in kinds if not error["type"].endswith(("_type", "_parsing"))] or kinds
                expected = " or ".join(map(expectation, kinds))
                self._tell(place, path, f"expected {expected}, got {_show(value)}{_way_out(value, kinds)}")

    def _note_ours(self, messages: str, place: yaml.Node, value: yaml.Node, path: tuple[str, ...]) -> None:
        for message in messages.split("\n"):
            found = SUBJECT.match(message)
            if found is None:
                self._tell(place, path, message)
            else:  # it starts with the key that it is about
                keys = found[1].split(".")
                self._tell(_walk(value, keys)[0], (*path, *keys), message[found.end() :])

    def refuse(self) -> None:
        """Tell all mistakes at once, in the order of the file.

        Raises:
            ConfigError: there are some.
        """
        lines = [line for _, line in sorted(self.mistakes, key=lambda mistake: mistake[0].start_mark.line)]
        if len(lines) > MOST_TOLD:
            lines = [*lines[:MOST_TOLD], f"... and {len(lines) - MOST_TOLD} more mistakes"]
        if lines:
            raise ConfigError("\n".join(lines))


def _walk(node: yaml.Node, keys: Sequence[str | int]) -> tuple[yaml.Node, yaml.Node, tuple[str, ...]]:
    """Along keys as far as they are there: the last key's node or list's item, the value there, and the path in words.

    A key that is not there is left out; pydantic puts the names of types between keys.
    """
    place, path = node, []
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == key), None)
            if pair is not None:
                (place, node), name = pair, str(key)
                path.append(name)
        elif isinstance(node, yaml.SequenceNode) and str(key).isdecimal() and int(key) < len(node.value):
            place = node = node.value[int(key)]
            path.append(item_name(node) or str(key))
    return place, node, tuple(path)


def _model_at(kind: Any, keys: Sequence[str | int]) -> Any:
    """The model whose keys stand at a place of a recipe."""
    for key in keys:
        if key in (hints := typing.get_type_hints(kind)):
            kind = _model_in(hints[str(key)])
    return kind


def _model_in(hint: Any) -> Any:
    if is_dataclass(hint):
        return hint
    return next(filter(None, map(_model_in, typing.get_args(hint))), None)


def _way_out(value: yaml.Node, errors: Sequence[Any]) -> str:
    """How to write a list, where one word stands for it."""
    word = isinstance(value, yaml.ScalarNode) and value.tag != NULL
    return "; write a list: [..., ...]" if word and any(error["type"] == "tuple_type" for error in errors) else ""


def _show(node: yaml.Node) -> str:
    """What stands there, in words."""
    if not isinstance(node, yaml.ScalarNode):
        return "a mapping" if isinstance(node, yaml.MappingNode) else f"a list of {len(node.value)}"
    if node.tag == NULL:
        return "nothing"
    text = repr(node.value) if node.tag == STR else str(node.value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
