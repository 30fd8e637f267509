"""Checks of a recipe's single values. Each message starts with the key that it is about."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from timm_compat.errors import ConfigError
from timm_compat.vocabulary import normal_name

# Keywords of create_extractor that have a key of their own in a member, or that the recipe as a whole decides.
OWN_KEYS = ("model", "space", "pretrained", "trainable", "out_index", "img_size", "crop_pct")


def check_text(key: str, value: object, *, optional: bool = False) -> None:
    """Refuse what is no text, or an empty one.

    Raises:
        ConfigError: see above.
    """
    if value is None and optional:
        return
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key}: expected a text, got {value!r:.80}")


def check_whole(key: str, value: object, *, least: float = -math.inf, most: float = math.inf) -> None:
    """Refuse what is no whole number in these limits.

    Raises:
        ConfigError: see above.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limits = f"of at least {least}" if math.isinf(most) else f"from {least} to {most}"
        raise ConfigError(f"{key}: expected a whole number{'' if math.isinf(least) else f' {limits}'}, got {value!r}")


def check_switch(key: str, value: object) -> None:
    """Refuse what is neither true nor false.

    Raises:
        ConfigError: see above.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: expected true or false, got {value!r}")


def check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is not among the choices.

    Raises:
        ConfigError: see above.
    """
    if value not in choices:
        raise ConfigError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")


def check_names(key: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple, in Unicode's form NFC.

    Raises:
        ConfigError: no list, an empty name, or one that comes twice.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"{key}: expected a list of names, got {names!r}")
    result = []
    seen: set[str] = set()
    for given in names:
        check_text(key, given)
        name = normal_name(given)
        result.append(name)
        if name in seen:
            raise ConfigError(f"{key}: expected every name once, got {name!r} twice")
        seen.add(name)
    return tuple(result)


def check_renaming(key: str, names: object) -> dict[str, str]:
    """New names by old ones, as texts.

    Raises:
        ConfigError: no mapping, or a name that is no text.
    """
    if not isinstance(names, Mapping):
        raise ConfigError(f"{key}: expected new names by old ones, such as {{automobile: car}}, got {names!r:.80}")
    for old, new in names.items():
        check_text(key, old)
        if not isinstance(new, str):
            raise ConfigError(f"{key}.{old}: expected a text, got {new!r:.80}; put it into quotes")
        check_text(f"{key}.{old}", new)
    return {normal_name(old): normal_name(new) for old, new in names.items()}


def check_arguments(arguments: object) -> dict[str, Any]:
    """timm's keywords with values that YAML can hold: scalars, or lists of scalars (a tuple becomes a list).

    Raises:
        ConfigError: another value, no keyword, or one that has a key of its own in a member.
    """
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"arguments: expected timm's keywords with their values, got {arguments!r:.80}")
    result: dict[str, Any] = {}
    for key, value in arguments.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise ConfigError(f"arguments: expected keywords of timm, got {key!r}")
        if key in OWN_KEYS:
            raise ConfigError(f"arguments.{key}: is no argument of the architecture; it has its own key in the recipe")
        several = isinstance(value, (list, tuple))
        for item in value if several else [value]:
            _check_scalar(f"arguments.{key}", item)
        result[key] = list(value) if several else value
    return result


def _check_scalar(key: str, value: object) -> None:
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise ConfigError(f"{key}: expected a text, a number, true, false, null or a list of these, got {value!r:.80}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: expected a finite number, got {value!r}")
