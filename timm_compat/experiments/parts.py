"""Extractors and heads from folders or the Hub, distinguished by their role, and named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm_compat.errors import ConfigError
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.storage.files import ROOT_KEY
from timm_compat.storage.reading import open_files

ROLE_PREFIXES = ("extractor-", "head-")


@dataclass(frozen=True)
class Parts:
    """Extractors and heads by name (a head that bears an extractor's name belongs to it), sources by (role, name)."""

    extractors: Mapping[str, CompatExtractor]
    heads: Mapping[str, TaskHead]
    sources: Mapping[tuple[str, str], str]


def load_parts(sources: Sequence[str]) -> Parts:
    """Load components, distinguished by their role.

    Args:
        sources: "SOURCE" or "NAME=SOURCE". Without a name it is the source's last part, less "extractor-" or "head-".

    Raises:
        ComponentFileError: a source that is no component.
        HubError: one that cannot be fetched.
        ConfigError: two parts of one role and name, a part that is neither extractor nor head, or one role missing.
    """
    extractors: dict[str, CompatExtractor] = {}
    heads: dict[str, TaskHead] = {}
    origins: dict[tuple[str, str], str] = {}
    for word in sources:
        name, source = named_source(word)
        role = open_files(source).config()[ROOT_KEY]["role"]
        if (role, name) in origins:
            raise ConfigError(f"expected every {role}'s name once, got {name!r} twice; write NAME={source}")
        origins[role, name] = source
        if role == "extractor":
            extractors[name] = CompatExtractor.from_pretrained(source)
        elif role == "head":
            heads[name] = TaskHead.from_pretrained(source)
        else:
            raise ConfigError(f"{source}: expected an extractor or a head, got a {role}")
    if not extractors or not heads:
        raise ConfigError(f"expected at least one extractor and one head, got {len(extractors)} and {len(heads)}")
    return Parts(extractors, heads, origins)


def named_source(word: str) -> tuple[str, str]:
    """Name and source of "NAME=SOURCE" or "SOURCE", whose name is its last part, less "extractor-" or "head-".

    Raises:
        ConfigError: nothing before or behind the sign.
    """
    name, sign, source = word.partition("=")
    if sign and not Path(word).exists():
        if not name or not source:
            raise ConfigError(f"expected NAME=SOURCE, got {word!r}")
        return name, source
    plain = Path(word).name or Path(word).resolve().name
    for prefix in ROLE_PREFIXES:
        plain = plain.removeprefix(prefix) or plain
    return plain, word
