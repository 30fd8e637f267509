"""A recipe from a YAML file or text, with overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from timm_compat.errors import ConfigError
from timm_compat.recipes.convert import Converter
from timm_compat.recipes.nodes import MAX_BYTES, apply_override, compose
from timm_compat.recipes.schema import Recipe

Kind = TypeVar("Kind")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe of a training from a YAML file.

    Args:
        path: as in ``read_as``.
        overrides: as in ``read_as``.

    Raises:
        ConfigError: as ``read_as`` does.
    """
    return read_as(Recipe, path, overrides)


def read_as(kind: type[Kind], path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """Read a recipe of any kind from a YAML file.

    Args:
        kind: the dataclass that the document becomes.
        path: of the file, UTF-8, at most 1 MiB.
        overrides: texts "PATH=VALUE" that set or replace values before anything is checked: "training.epochs=3",
            "members.a.backbone=resnet18" (a member by its name, or by its number from 0), "space.methods=[rotation]".

    Raises:
        ConfigError: no such file, or the first mistake in it, with file and line; for an override, with its text.
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
    return _convert(kind, text, str(path), overrides)


def recipe_from_text(text: str, name: str = "<recipe>", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe of a training from YAML text.

    Args:
        text: the whole recipe.
        name: where it comes from, for messages.
        overrides: as in ``read_as``.

    Raises:
        ConfigError: the first mistake, with name and line; for an override, with its text.
    """
    return _convert(Recipe, text, name, overrides)


def _convert(kind: type[Kind], text: str, name: str, overrides: Sequence[str]) -> Kind:
    root = compose(text, name)
    for override in overrides:
        root = apply_override(root, override)
    recipe: Kind = Converter().convert(root, kind, "")
    return recipe
