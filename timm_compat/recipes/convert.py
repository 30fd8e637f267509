"""YAML nodes to dataclasses, by their type hints. A refusal is one line: ``FILE:LINE: key.key: expected ..., got ...``.

Nothing is guessed: a word is a text where a text is asked for ("no", "0", "2001-01-01"), and only there.
"""

import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import yaml

from timm_compat.errors import ConfigError
from timm_compat.recipes.nodes import NULL, STR, TAG, Pair, close_match, item_name

MAX_VALUES = 500_000  # aliases can make a small file a huge recipe

_BOOL, _INT, _FLOAT = f"{TAG}bool", f"{TAG}int", f"{TAG}float"
_KNOWN_TAGS = {STR, NULL, _BOOL, _INT, _FLOAT, *(f"{TAG}{kind}" for kind in ("map", "seq"))}
_KNOWN_TAGS |= {f"{TAG}{kind}" for kind in ("timestamp", "merge", "value")}  # texts to us, whose look YAML 1.1 knows
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DECIMAL = re.compile(r"[-+]?(0|[1-9](_?[0-9]){0,30})")  # YAML 1.1 and 1.2 disagree about 010
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # a text in YAML 1.1 where the point is missing
_SUBJECT = re.compile(r"([A-Za-z_][\w.]*): ")
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
_MOST_SHOWN = 60


class Converter:
    """Converts one document; counts its values, so that aliases cannot multiply without end."""

    def __init__(self) -> None:
        self.count = 0

    def convert(self, node: yaml.Node, hint: Any, path: str) -> Any:
        """A node's value.

        Args:
            node: any.
            hint: the type asked for: a dataclass, a scalar type, a tuple, a mapping, ``Any``, or a union of these.
            path: keys that lead to the node, with dots.

        Raises:
            ConfigError: another type, an unknown, repeated or missing key, or a value that a dataclass refuses.
        """
        self.count += 1
        if self.count > MAX_VALUES:
            raise _refusal(node, path, f"expected at most {MAX_VALUES} values, got more; do aliases stand for aliases?")
        _check_tag(node, path)
        for kind in _kinds(hint):
            value = self._as_kind(node, kind, path)
            if value is not MISSING:
                return value
        raise _refusal(node, path, f"expected {_describe(hint)}, got {_show(node)}{_way_out(node, hint)}")

    def _as_kind(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """The value as one of the types that a union allows; MISSING if it is none of that type."""
        origin = typing.get_origin(kind)
        if isinstance(node, yaml.MappingNode):
            if is_dataclass(kind):
                return self._dataclass(node, kind, path)
            if origin is Mapping:
                pairs = _pairs(node, path)
                return {key: self.convert(pair[1], Any, _join(path, key)) for key, pair in pairs.items()}
        if isinstance(node, yaml.SequenceNode):
            if kind is Any:
                return [self._item_of_any(item, path) for item in node.value]
            if origin is tuple:
                return self._tuple(node, typing.get_args(kind), path)
        return _scalar(node, kind) if isinstance(node, yaml.ScalarNode) else MISSING

    def _dataclass(self, node: yaml.MappingNode, kind: Any, path: str) -> Any:
        pairs, hints = _pairs(node, path), typing.get_type_hints(kind)
        for key, (key_node, _) in pairs.items():
            if key not in hints:
                raise _refusal(key_node, _join(path, key), f"unknown key; {close_match(key, list(hints))}")
        for field in fields(kind):
            required = field.default is MISSING and field.default_factory is MISSING
            if required and field.name not in pairs:
                expected = f"expected {_describe(hints[field.name])}, got nothing; this key is required"
                raise _refusal(node, _join(path, field.name), expected)
        values = {key: self.convert(value, hints[key], _join(path, key)) for key, (_, value) in pairs.items()}
        try:
            return kind(**values)
        except ConfigError as error:
            raise _located(error, node, path, list(hints)) from error

    def _tuple(self, node: yaml.SequenceNode, kinds: tuple[Any, ...], path: str) -> Any:
        if kinds[1:] == (...,):
            kinds = kinds[:1] * len(node.value)
        if len(kinds) != len(node.value):
            return MISSING
        names = [item_name(item) or str(position) for position, item in enumerate(node.value)]
        triples = zip(node.value, kinds, names, strict=True)
        return tuple(self.convert(item, kind, _join(path, name)) for item, kind, name in triples)

    def _item_of_any(self, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise _refusal(
                node, path, f"expected a list of texts, numbers, true, false or null, got {_show(node)} in it"
            )
        return self.convert(node, Any, path)


def _scalar(node: yaml.ScalarNode, kind: Any) -> Any:
    text, tag = str(node.value), node.tag
    if kind is types.NoneType:
        return None if tag == NULL else MISSING
    if kind is bool:
        return _SWITCHES.get(text.lower(), MISSING) if tag == _BOOL else MISSING
    if kind is int:
        return int(text) if tag == _INT and _DECIMAL.fullmatch(text) else MISSING
    if kind is float:
        return _number(node)
    if kind is str:
        return MISSING if tag == NULL else text
    return _anything(node) if kind is Any else MISSING


def _number(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    exponent = node.tag == STR and node.style is None and _EXPONENT.fullmatch(text)
    if not (exponent or node.tag == _FLOAT or (node.tag == _INT and _DECIMAL.fullmatch(text))):
        return MISSING
    try:
        value = float(text)
    except ValueError:  # YAML's .inf, .nan and 1:30.5
        return MISSING
    return value if math.isfinite(value) else MISSING


def _anything(node: yaml.ScalarNode) -> Any:
    kinds = {NULL: types.NoneType, _BOOL: bool, _INT: int, _FLOAT: float}
    if node.tag in kinds:
        return _scalar(node, kinds[node.tag])
    return _number(node) if node.style is None and _EXPONENT.fullmatch(node.value) else str(node.value)


def _pairs(node: yaml.MappingNode, path: str) -> dict[str, Pair]:
    """Key and value nodes by key."""
    result: dict[str, Pair] = {}
    for key, value in node.value:
        _check_tag(key, path)
        if not isinstance(key, yaml.ScalarNode):
            raise _refusal(key, path, f"expected a word as a key, got {_show(key)}")
        if key.value in result:
            first = result[key.value][0].start_mark.name
            raise _refusal(
                key, _join(path, key.value), f"expected every key once, got it a second time (first: {first})"
            )
        result[key.value] = (key, value)
    return result


def _located(error: ConfigError, node: yaml.MappingNode, path: str, keys: list[str]) -> ConfigError:
    """A dataclass's own refusal, with the place of the key with which its message starts."""
    message = str(error)
    found = _SUBJECT.match(message)
    subject = found[1].split(".") if found else []
    if not subject or subject[0] not in keys:
        return _refusal(node, path, message)
    place = _place(node, subject)
    return ConfigError(_one_line(f"{place.start_mark.name}: {_join(path, message)}"))


def _place(node: yaml.Node, keys: list[str]) -> yaml.Node:
    """The deepest node on the way along the keys that is there: a key, or a list's item."""
    place = node
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == key), None)
            if pair is None:
                break
            place, node = pair
        elif isinstance(node, yaml.SequenceNode) and key.isdecimal():
            place = node = node.value[int(key)]
    return place


def _refusal(node: yaml.Node, path: str, message: str) -> ConfigError:
    return ConfigError(_one_line(f"{node.start_mark.name}: {f'{path}: ' if path else ''}{message}"))


def _check_tag(node: yaml.Node, path: str) -> None:
    if node.tag not in _KNOWN_TAGS:
        raise _refusal(node, path, f"expected plain YAML, got the tag {node.tag.replace(TAG, '!!')!r}; drop it")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _one_line(message: str) -> str:
    return "\\n".join(message.splitlines())


def _kinds(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _describe(hint: Any) -> str:
    """The type that is asked for, in words."""
    words = []
    for kind in _kinds(hint):
        if typing.get_origin(kind) is tuple:
            first, *others = typing.get_args(kind)
            number = "" if others == [...] else f"{len(others) + 1} "
            words.append(f"a list of {number}{_describe(first).removeprefix('a ')}s")
        elif is_dataclass(kind) or typing.get_origin(kind) is Mapping:
            words.append("a mapping")
        elif kind is Any:
            words.append("a text, a number, true, false, null or a list of these")
        elif kind in _WORDS:
            words.append(_WORDS[kind])
    return " or ".join(words)


def _show(node: yaml.Node) -> str:
    """What stands there, in words."""
    if not isinstance(node, yaml.ScalarNode):
        return "a mapping" if isinstance(node, yaml.MappingNode) else f"a list of {len(node.value)}"
    if node.tag == NULL:
        return "nothing"
    text = repr(node.value) if node.tag == STR else str(node.value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _way_out(node: yaml.Node, hint: Any) -> str:
    several = any(typing.get_origin(kind) is tuple for kind in _kinds(hint))
    if several and isinstance(node, yaml.ScalarNode) and node.tag != NULL:
        return "; write a list: [..., ...]"
    return ""
