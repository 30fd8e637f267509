"""A recipe as YAML, complete: every field, also those left at their defaults."""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

LINE_LENGTH = 120

_SIMPLE = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)


def recipe_to_text(recipe: Any) -> str:
    """A recipe of any kind as YAML text, from which the reader makes an equal recipe."""
    plain = _plain(recipe)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=LINE_LENGTH)


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, no aliases, and quotes around every text that is not a simple word."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        # PyYAML itself quotes the words that it reads as something else, but not 1e3, which we read as a number.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if _SIMPLE.fullmatch(text) else '"')

    def represent_items(self, items: list[Any]) -> yaml.Node:
        scalars = not any(isinstance(item, (dict, list)) for item in items)
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=scalars)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_items)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
