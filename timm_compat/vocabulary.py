"""Ordered class names: the vocabulary by which tasks find their classes in common."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence

from timm_compat.errors import ConfigError

MAX_CLASSES = 1_000_000


def listed(names: Sequence[str], most: int = 100, *, shown_as: Callable[[str], str] = str) -> str:
    """The first names in one text, each as ``shown_as`` gives it, and how many more there are."""
    shown = ", ".join(shown_as(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def printable(text: str) -> str:
    """One line without control characters: what strangers wrote must not steer a terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def normal_name(name: str) -> str:
    """A class name in Unicode's form NFC: what looks alike is one name, however a file system or editor wrote it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def check_class_names(names: Iterable[str], least: int = 1) -> tuple[str, ...]:
    """Ordered class names as a tuple, in form NFC.

    Raises:
        ConfigError: fewer than ``least``, too many, an empty name, one that comes twice or only looks like another,
            or something that is no text.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"class_names: expected a list of names, got {names!r}")
    given = tuple(names)
    if not least <= len(given) <= MAX_CLASSES:
        raise ConfigError(f"class_names: expected {least} to {MAX_CLASSES} names, got {len(given)}")
    result: dict[str, str] = {}
    for position, name in enumerate(given):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"class_names: expected a non-empty string at position {position}, got {name!r}")
        if not name.isascii():
            _check_unicode(name, position)
        known = result.setdefault(normal_name(name), name)
        if known == name and len(result) <= position:
            raise ConfigError(f"class_names: expected every name once, got {name!r} twice")
        if known != name:
            raise ConfigError(
                f"class_names: expected every name once, got {known!a} and {name!a}, which are one name; rename one"
            )
    return tuple(result)


def _check_unicode(name: str, position: int) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(
            f"class_names: expected a string at position {position}, got {name!a}, which UTF-8 cannot encode; rename it"
        ) from None
