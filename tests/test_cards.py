"""Model cards: every role renders, the front matter reads back, and a missing fact is an error."""

from string import Template

import pytest
import yaml

from timm_compat.cards import CARD_ROLES, card_template, render_card
from timm_compat.errors import ConfigError

FACTS = {
    "architecture": "resnet18",
    "feature_dim": "64",
    "level": "pooled",
    "space": "0123456789abcdef",
    "input_size": "3 x 32 x 32",
    "class_names": "cat, dog",
    "num_classes": "2",
    "normalization": "batch",
    "methods": "common_classes, rotation",
}
TAGS = ["timm-compat", "timm-compat-space:0123456789abcdef"]


def split(card: str) -> tuple[dict[str, object], str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize("role", CARD_ROLES)
def test_a_card_is_front_matter_and_a_filled_template(role: str) -> None:
    front, body = split(render_card(role, FACTS, TAGS))
    assert front == {"library_name": "timm-compat", "tags": TAGS}
    assert body == "\n" + Template(card_template(role)).substitute(FACTS)
    assert "`timm-compat-space:0123456789abcdef`" in body


def test_a_licence_is_named_only_when_given() -> None:
    front, _ = split(render_card("head", {**FACTS, "license": "apache-2.0"}, TAGS))
    assert front["license"] == "apache-2.0"


def test_tags_that_look_like_numbers_stay_text() -> None:
    front, _ = split(render_card("space", FACTS, ["12345678", "0x1f"]))
    assert front["tags"] == ["12345678", "0x1f"]


def test_a_value_stays_in_its_table_cell() -> None:
    card = render_card("head", {**FACTS, "class_names": "a|b,\nc"}, TAGS)
    assert "| classes, in order | a\\|b, c |" in card


def test_a_dollar_in_a_value_is_only_a_dollar() -> None:
    assert "$space" in render_card("head", {**FACTS, "class_names": "$space"}, TAGS)


@pytest.mark.parametrize("role", CARD_ROLES)
def test_a_missing_fact_is_named(role: str) -> None:
    facts = {name: value for name, value in FACTS.items() if name != "space"}
    with pytest.raises(ConfigError, match="'space'"):
        render_card(role, facts, TAGS)


def test_an_unknown_role_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="extractor, head, space"):
        card_template("../secrets")
