"""YAML text as a tree of nodes that know their lines, and changes to such a tree.

``node.start_mark.name`` is ready for a message: "FILE:LINE", or "override 'training.epochs=3'".
"""

import difflib
from collections.abc import Sequence

import yaml
from yaml.reader import ReaderError

from timm_compat.errors import ConfigError

MAX_BYTES = 2**20
TAG = "tag:yaml.org,2002:"
NULL, MAP, STR = f"{TAG}null", f"{TAG}map", f"{TAG}str"

Pair = tuple[yaml.Node, yaml.Node]


class _Loader(yaml.SafeLoader):
    """Composes nodes only; nothing in the text is built or imported."""

    def __init__(self, text: str, name: str, numbered: bool) -> None:
        self.source, self.numbered = name, numbered
        super().__init__(text)

    def get_mark(self) -> yaml.Mark:
        name = f"{self.source}:{self.line + 1}" if self.numbered else self.source
        return yaml.Mark(name, self.index, self.line, self.column, None, self.pointer)


def compose(text: str, name: str, *, numbered: bool = True) -> yaml.Node:
    """The tree of a YAML text; an empty text is null.

    Args:
        text: one YAML document.
        name: where it comes from, for messages.
        numbered: whether messages tell the line.

    Raises:
        ConfigError: no YAML, several documents, or too much of it.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{name}: expected at most {MAX_BYTES} bytes of YAML, got {len(text)}")
    try:
        loader = _Loader(text, name, numbered)
        start = loader.get_mark()
        return loader.get_single_node() or yaml.ScalarNode(NULL, "", start, start)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{mark.name if mark else name}: expected YAML, got an error: {problem}") from error
    except ReaderError as error:
        line = f":{text.count(chr(10), 0, error.position) + 1}" if numbered else ""
        raise ConfigError(f"{name}{line}: expected YAML, got a character that it does not allow") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: expected a recipe, got YAML nested too deeply") from error
    except (ValueError, OverflowError) as error:  # PyYAML lets them through, as for the text "\\UFFFFFFFF"
        raise ConfigError(f"{name}: expected YAML, got an error: {error}") from error


def apply_override(root: yaml.Node, override: str) -> yaml.Node:
    """A tree with one value set; the given one stays as it is.

    Args:
        root: of the whole recipe.
        override: "PATH=VALUE" with keys separated by dots, members by their name or number, and a value in YAML.
            Mappings that are absent on the way are made.

    Raises:
        ConfigError: no such text, or a path through something that is no mapping and no list.
    """
    name = f"override {override!r}"
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{name}: expected PATH=VALUE, such as training.epochs=3")
    return _with_value(root, keys, 0, compose(text, name, numbered=False))


def item_name(item: yaml.Node) -> str | None:
    """What a list's item calls itself by its key "name"."""
    for key, value in item.value if isinstance(item, yaml.MappingNode) else ():
        if key.value == "name" and isinstance(value, yaml.ScalarNode):
            return str(value.value)
    return None


def close_match(word: str, known: Sequence[str]) -> str:
    """How a message about an unknown word ends: with the word that was meant, or with all that there are."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known) or 'none'}"


def _with_value(node: yaml.Node, keys: list[str], depth: int, value: yaml.Node) -> yaml.Node:
    """The node with a value set below it, ``keys[:depth]`` being its own path."""
    if depth == len(keys):
        return value
    where, path = value.start_mark.name, ".".join(keys[:depth])
    if node.tag == NULL:
        node = yaml.MappingNode(MAP, [], value.start_mark, value.end_mark)
    # Nodes on the way are copied: an alias may stand for the same node elsewhere, and that one is not meant.
    if isinstance(node, yaml.MappingNode):
        return _mapping_with(node, keys, depth, value)
    if isinstance(node, yaml.SequenceNode):
        items = list(node.value)
        position = _position(items, keys[depth], f"{where}: {path}")
        items[position] = _with_value(items[position], keys, depth + 1, value)
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    raise ConfigError(f"{where}: {path or 'recipe'}: expected a mapping with the key {keys[depth]!r}, got one value")


def _mapping_with(node: yaml.MappingNode, keys: list[str], depth: int, value: yaml.Node) -> yaml.Node:
    pairs: list[Pair] = list(node.value)
    key: yaml.Node = yaml.ScalarNode(STR, keys[depth], value.start_mark, value.end_mark)
    found = [position for position, (known, _) in enumerate(pairs) if known.value == keys[depth]]
    if not found:
        below: yaml.Node = yaml.ScalarNode(NULL, "", value.start_mark, value.end_mark)
        pairs.append((key, _with_value(below, keys, depth + 1, value)))
    else:
        known, below = pairs[found[0]]
        last = depth + 1 == len(keys)
        pairs[found[0]] = (key if last else known, _with_value(below, keys, depth + 1, value))
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)


def _position(items: list[yaml.Node], key: str, where: str) -> int:
    numbers = [str(position) for position in range(len(items))]
    names = [item_name(item) or number for item, number in zip(items, numbers, strict=True)]
    for known in (names, numbers):
        if key in known:
            return known.index(key)
    raise ConfigError(f"{where}: nothing is called {key!r}; {close_match(key, names)}")
