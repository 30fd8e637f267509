"""Model cards: the templates of ``hub_cards/``, and filling one with a component's facts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from timm_compat.errors import ConfigError

CARD_ROLES = ("extractor", "head", "space")

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "hub_cards", _PACKAGE.parent / "hub_cards")  # a wheel; an editable install or a bare checkout


def card_template(role: str) -> str:
    """The card template of one role, as text with ``string.Template`` placeholders.

    Raises:
        ConfigError: unknown role, or an installation without its templates.
    """
    if role not in CARD_ROLES:
        raise ConfigError(f"expected a card role out of {', '.join(CARD_ROLES)}; got {role!r}")
    for folder in _FOLDERS:
        path = folder / f"{role}.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ConfigError(f"hub_cards/{role}.md is missing from this installation of timm-compat; install it again")


def render_card(role: str, facts: Mapping[str, str], tags: Sequence[str]) -> str:
    """A whole card: YAML front matter (library name, tags, ``facts["license"]`` if given), then the filled template.

    Facts that the template does not ask for are left out.

    Raises:
        ConfigError: unknown role, or the template asks for a fact that is not given.
    """
    template = Template(card_template(role))
    try:
        body = template.substitute({name: _one_line(value) for name, value in facts.items()})
    except KeyError as error:
        given = ", ".join(sorted(facts)) or "none"
        raise ConfigError(f"the {role} card needs the fact {error.args[0]!r}; given: {given}") from error
    return f"---\n{_front_matter(facts, tags)}\n---\n\n{body}"


def _front_matter(facts: Mapping[str, str], tags: Sequence[str]) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="timm-compat", license=facts.get("license"), tags=list(tags))
    return data.to_yaml().strip()


def _one_line(value: str) -> str:
    """Keep a value inside its table cell."""
    return " ".join(value.split()).replace("|", "\\|")
