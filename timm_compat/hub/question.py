"""What a search asks for, and how far the tags of a listed repository answer it."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_compat.errors import ConfigError
from timm_compat.hub.loading import CLASSES, read_facts
from timm_compat.models.composed import CompatModel
from timm_compat.space import FINGERPRINT_DIGITS, CompatSpace
from timm_compat.storage.cards import CLASS_NAMES
from timm_compat.storage.component import Component
from timm_compat.storage.files import ROLES, ROOT_KEY
from timm_compat.vocabulary import normal_name

ROLE_TAG, SPACE_TAG = "timm-compat-role:", "timm-compat-space:"
WITH_CLASSES = ("head", "model")
FITTING = {  # what a component of a role can be used with
    "extractor": ("head",),
    "head": ("extractor",),
    "model": ("extractor", "head"),
    "space": ("extractor", "head"),
}


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
        space: fingerprint.
        roles: of which any will do; all of them if empty.
        classes: that a head or model must know.
        dim: feature dimensions.
        author: user or organisation.
    """

    space: str | None
    roles: tuple[str, ...]
    classes: frozenset[str]
    dim: int | None
    author: str | None

    def tags(self, *, any_role: bool = False) -> list[str]:
        """Those that the server is asked for: all of them, so one of several roles is left to ``accepts``."""
        asked = [] if self.space is None else [f"{SPACE_TAG}{self.space}"]
        asked += [] if self.dim is None else [f"timm-compat-dim:{self.dim}"]
        asked += [f"{ROLE_TAG}{self.roles[0]}"] if len(self.roles) == 1 and not any_role else []
        return ["timm-compat", *asked]

    def accepts(self, info: Any) -> bool:
        """Whether a listed repository is a candidate; a server may ignore filters."""
        tags = set(info.tags or ())
        if not set(self.tags()) <= tags or self.author not in (None, str(info.id).partition("/")[0]):
            return False
        if self.roles and not any(f"{ROLE_TAG}{role}" in tags for role in self.roles):
            return False
        if not self.classes:
            return True
        stated = (info.card_data or {}).get(CLASS_NAMES)
        if isinstance(stated, list):
            return self.classes <= {normal_name(str(name)) for name in stated}
        return any(f"{ROLE_TAG}{role}" in tags for role in WITH_CLASSES)


def checked_question(
    space: CompatSpace | str | None,
    fits: Component | str | Path | None,
    role: str | None,
    classes: Collection[str],
    dim: int | None,
    author: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
) -> Question:
    """What ``search`` is asked for, checked; of a component's folder or Hub id, its ``config.json`` is read.

    Raises:
        ConfigError, ComponentFileError, DraftSpaceError, HubError: as ``search``.
    """
    if role is not None and role not in ROLES:
        raise ConfigError(f"role: expected one of {', '.join(ROLES)}, got {role!r}")
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
        raise ConfigError(f"dim: expected a positive integer, got {dim!r}")
    if isinstance(classes, str):
        raise ConfigError(f"classes: expected a list of names, got {classes!r}")
    roles = () if role is None else (role,)
    names = frozenset(map(normal_name, classes))
    if fits is None:
        return Question(_fingerprint(space), roles, names, dim, author)
    if space is not None:
        raise ConfigError("fits: expected it without space=, which it stands for; drop one of them")
    own, home = _role_and_space(fits, token, cache_dir)
    if role is not None and role not in FITTING[own]:
        raise ConfigError(f"role: expected {' or '.join(FITTING[own])}, which fit {_an(own)}, got {role!r}")
    return Question(home.fingerprint, roles or FITTING[own], names, dim, author)


def _fingerprint(space: CompatSpace | str | None) -> str | None:
    fingerprint = space.fingerprint if isinstance(space, CompatSpace) else space
    if fingerprint is not None and not (
        isinstance(fingerprint, str)
        and len(fingerprint) == FINGERPRINT_DIGITS
        and set(fingerprint) <= set("0123456789abcdef")
    ):
        raise ConfigError(
            f"space: expected a CompatSpace or its fingerprint of {FINGERPRINT_DIGITS} hex digits, got {fingerprint!r}"
        )
    return fingerprint


def _role_and_space(
    fits: Component | str | Path, token: str | bool | None, cache_dir: str | Path | None
) -> tuple[str, CompatSpace]:
    if isinstance(fits, (str, Path)):
        ours = read_facts(fits, token=token, cache_dir=cache_dir)[0][ROOT_KEY]
        return ours["role"], CompatSpace.from_config(ours.get("space"))
    for role, kind in CLASSES.items():
        if isinstance(fits, kind):
            return role, _space_of(fits)
    raise ConfigError(f"fits: expected a component, its folder or its Hub id, got {fits!r:.80}")


def _space_of(component: Any) -> CompatSpace:
    if isinstance(component, CompatSpace):
        return component
    space: CompatSpace = (component.extractor if isinstance(component, CompatModel) else component).space
    return space


def _an(role: str) -> str:
    return f"an {role}" if role == "extractor" else f"a {role}"
