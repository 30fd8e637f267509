"""Ordered class names: the vocabulary in which tasks find out what they have in common."""

from collections.abc import Iterable, Sequence

from timm_compat.errors import ConfigError

MAX_CLASSES = 1_000_000


def listed(names: Sequence[str], most: int = 100) -> str:
    """The first names in one text, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def printable(text: str) -> str:
    """One line without control characters: what strangers wrote must not steer a terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def check_class_names(names: Iterable[str], least: int = 1) -> tuple[str, ...]:
    """Ordered class names as a tuple.

    Raises:
        ConfigError: fewer than ``least``, too many, an empty or repeated name, or something that is no text.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"class_names: expected a list of names, got {names!r}")
    result = tuple(names)
    if not least <= len(result) <= MAX_CLASSES:
        raise ConfigError(f"class_names: expected {least} to {MAX_CLASSES} names, got {len(result)}")
    seen: set[str] = set()
    for position, name in enumerate(result):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"class_names: expected text at position {position}, got {name!r}")
        if name in seen:
            raise ConfigError(f"class_names: expected every name once, got {name!r} twice")
        seen.add(name)
    return result
