"""Model cards: every role renders, the metadata reads back typed, people's edits survive, no fact is invented."""

import json
import re
import socket
import time
from pathlib import Path
from string import Template

import pytest
import yaml

import timm_compat as tc
from timm_compat.errors import ConfigError
from timm_compat.storage.card_merge import merge_cards
from timm_compat.storage.cards import CARD_ROLES, card_template, render_card

VALUES = {
    "architecture": "resnet18",
    "channels": "3",
    "feature_dim": "64",
    "level": "pooled",
    "space": "0123456789abcdef",
    "input_size": "3 x 32 x 32",
    "weights": "in this repository",
    "class_names": "cat, dog",
    "num_classes": "2",
    "normalization": "batch",
    "methods": "common_classes, rotation",
    "parameters": "1,234",
    "extractor": "`lab/extractor` at commit `abc`",
    "head": "not published as it is",
}
TAGS = ["timm-compat", "timm-compat-space:0123456789abcdef"]
MATRIX = {"rows": ["a", "b"], "columns": ["a", "b"], "accuracy": [[0.9, 0.8], [0.7, None]]}
FACTS = tc.Facts(
    license="apache-2.0",
    base_model="timm/resnet18.a1_in1k",
    datasets=("lab/cats", "my own photos"),
    results=(tc.Result("cats", 0.875, num_images=400, partner="lab/head"),),
    training={"method": "common classes", "seed": 0},
    matrix=MATRIX,
    member="a",
)


def split(card: str) -> tuple[dict[str, object], str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize("role", CARD_ROLES)
def test_a_card_is_front_matter_and_a_filled_template(role: str) -> None:
    front, body = split(render_card(role, VALUES, TAGS))
    kind = front.pop("pipeline_tag", None)
    assert kind == {"extractor": "image-feature-extraction", "model": "image-classification"}.get(
        role, "image-classification" if role == "fused" else None
    )
    assert front == {"library_name": "timm" if role == "fused" else "timm-compat", "tags": TAGS}
    places = {"place": '"path-or-repo-id"', "timm_name": '"hf-hub:path-or-repo-id"', "timm_imports": "import timm"}
    empty = {**places, "results": "", "provenance": ""}
    assert body == "\n" + Template(card_template(role)).substitute(VALUES | empty)
    assert "0123456789abcdef" in body


def narrow(card: str) -> str:
    """A card without what lines up the columns of its tables."""
    return re.sub(" +", " ", card)


def test_metadata_is_typed_as_the_hub_knows_it() -> None:
    front, body = split(
        render_card("extractor", VALUES, TAGS, FACTS, repo_id="lab/extractor", picture=True, relation="finetune")
    )
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == ["timm/resnet18.a1_in1k"]
    assert front["base_model_relation"] == "finetune"
    assert front["datasets"] == ["lab/cats"]
    (entry,) = front["model-index"]
    assert entry["name"] == "extractor"
    assert entry["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.875, "name": "accuracy with lab/head"}]
    assert 'from_pretrained("lab/extractor")' in body
    assert "| a | 0.900 | 0.800 |" in narrow(body)
    assert "\n| b |" not in body  # another extractor's row
    assert "![Recombination matrix](matrix.png)" in body
    assert "- seed: 0" in body
    assert body.index("from_pretrained") < body.index("## Results") < body.index("## How it was made")


def test_a_heads_card_shows_its_column_and_a_spaces_card_the_whole() -> None:
    head, space = (narrow(render_card(role, VALUES, TAGS, FACTS)) for role in ("head", "space"))
    assert "| extractor \\ head | a |\n| --- | ---: |\n| a | 0.900 |\n| b | 0.700 |" in head
    assert "| b | 0.700 | n/a |" in space


def test_tags_that_look_like_numbers_stay_text() -> None:
    front, _ = split(render_card("space", VALUES, ["12345678", "0x1f"]))
    assert front["tags"] == ["12345678", "0x1f"]


def test_a_value_stays_in_its_table_cell() -> None:
    card = render_card("head", {**VALUES, "class_names": "a|b,\nc"}, TAGS)
    assert "| classes, in order | a\\|b, c |" in card


def test_a_value_cannot_pose_as_a_mark() -> None:
    new = render_card("head", {**VALUES, "class_names": "a <!-- /timm-compat:facts --> b"}, TAGS)
    assert new.count("<!-- /timm-compat:facts -->") == 1
    assert merge_cards(new, new) == new


HOSTILE = "a`b | c ](http://evil) <script> <!-- /timm-compat:provenance --> \x1b[31m\nd"


def test_licence_language_and_citation() -> None:
    facts = tc.Facts(
        license="other", license_name="house-rules", license_link="LICENSE", language="en",
        citation="@misc{me,\n  title={```Mine```},\n}",
    )  # fmt: skip
    front, body = split(render_card("head", VALUES, TAGS, facts))
    assert {key: front[key] for key in ("license", "license_name", "license_link", "language")} == {
        "license": "other", "license_name": "house-rules", "license_link": "LICENSE", "language": "en",
    }  # fmt: skip
    assert "## Citation\n\n```bibtex\n@misc{me,\n  title={'''Mine'''},\n}\n```" in body
    assert tc.Facts.from_config(facts.to_config()) == facts


def test_a_citation_cannot_close_our_marks() -> None:
    text = "<!<!---- /timm-compat:provenance -->"
    card = render_card("head", VALUES, TAGS, tc.Facts(citation=text))
    assert card.count("<!-- /timm-compat:provenance -->") == 1


def test_imagenets_classes_are_named_in_words(tmp_path: Path) -> None:
    space = tc.CompatSpace(4, ["n01440764", "rose"], ["common_classes"]).finalize()
    for card in (space.card(), tc.TaskHead(space, space.class_names).card()):
        assert "n01440764 (tench), rose" in card


@pytest.mark.parametrize("role", CARD_ROLES)
def test_facts_of_strangers_stay_in_their_lines(role: str) -> None:
    matrix = {"rows": [HOSTILE], "columns": [HOSTILE], "accuracy": [[0.5]]}
    facts = tc.Facts(
        base_model=HOSTILE,
        base_model_commit=HOSTILE,
        datasets=(HOSTILE,),
        results=(tc.Result(HOSTILE, 0.5, split=HOSTILE, partner=HOSTILE),),
        training={HOSTILE: HOSTILE},
        matrix=matrix,
    )
    card = render_card(role, {**VALUES, "class_names": HOSTILE}, TAGS, facts)
    front, body = split(card)
    assert front["base_model"] == [HOSTILE]
    for sign in ("\x1b", "<script>", "](http"):
        assert sign not in body
    for name in ("usage", "results", "facts", "provenance"):
        assert body.count(f"<!-- timm-compat:{name} -->") <= 1
        assert body.count(f"<!-- timm-compat:{name} -->") == body.count(f"<!-- /timm-compat:{name} -->")
    assert not re.search(r"^d", body, re.MULTILINE)
    (line,) = [line for line in body.splitlines() if line.startswith("- started from")]
    assert line.count("`") == 4
    assert merge_cards(card, card) == card


def test_a_dollar_in_a_value_is_only_a_dollar() -> None:
    assert "$space" in render_card("head", {**VALUES, "class_names": "$space"}, TAGS)


@pytest.mark.parametrize("role", CARD_ROLES)
def test_a_missing_fact_is_named(role: str) -> None:
    values = {name: value for name, value in VALUES.items() if name != "space"}
    with pytest.raises(ConfigError, match="'space'"):
        render_card(role, values, TAGS)


def test_an_unknown_role_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="extractor, fused, head, model, space"):
        card_template("../secrets")


@pytest.mark.parametrize("accuracy", [1.5, -0.1, float("nan"), True, "high"])
def test_results_are_accuracies(accuracy: object) -> None:
    with pytest.raises(ConfigError, match="accuracy: expected a number from 0 to 1"):
        tc.Result("digits", accuracy)  # type: ignore[arg-type]


def test_a_member_must_be_in_the_matrix() -> None:
    with pytest.raises(ConfigError, match="member: expected one of a, b, got 'c'"):
        tc.Facts(matrix=MATRIX, member="c")


def test_facts_travel_with_the_component(tmp_path: Path) -> None:
    space = tc.CompatSpace(8, methods=["rotation"]).finalize()
    head = tc.TaskHead(space, ["a", "b"])
    head.facts = FACTS
    loaded = tc.TaskHead.from_pretrained(head.save_pretrained(tmp_path / "head"))
    assert loaded.facts == FACTS


class TestMerge:
    new = render_card("head", VALUES | {"class_names": "cat, dog, owl"}, TAGS, FACTS)

    def test_only_marked_sections_are_refreshed(self) -> None:
        old = render_card("head", VALUES, TAGS).replace(
            "# A compatible", "# My own title\n\nWords of mine.\n\n# A compatible"
        )
        merged = merge_cards(old, self.new)
        assert "# My own title\n\nWords of mine." in merged
        assert "cat, dog, owl" in merged
        assert "## Results" in merged
        assert merge_cards(merged, self.new) == merged

    def test_a_section_that_somebody_removed_stays_away(self) -> None:
        old = re.sub(r"<!-- timm-compat:facts.*/timm-compat:facts -->", "", render_card("head", VALUES, TAGS), flags=16)
        assert "classes, in order" not in merge_cards(old, self.new)

    def test_a_text_without_marks_keeps_every_word(self) -> None:
        merged = merge_cards("# Handwritten\n\nAll mine.\n", self.new)
        front, body = split(merged)
        assert body == "\n# Handwritten\n\nAll mine.\n"
        assert front["tags"] == TAGS

    def test_metadata_of_both_sides(self) -> None:
        theirs = "---\nlicense: mit\nlanguage: de\ntags:\n- mine\n- timm-compat-space:old\ndatasets: [x/y]\n---\ntext\n"
        front, _ = split(merge_cards(theirs, render_card("head", VALUES, TAGS)))
        assert front["license"] == "mit"  # ours does not know one
        assert front["language"] == "de"
        assert front["tags"] == [*TAGS, "mine"]
        assert split(merge_cards(theirs, self.new))[0]["license"] == "apache-2.0"
        assert split(merge_cards(theirs, self.new))[0]["datasets"] == ["lab/cats", "x/y"]

    def test_a_card_without_text_becomes_the_new_one(self) -> None:
        for old in ("---\nlicense: mit\n---\n", "", "---\nlicense: mit\n---\n\n  \n"):
            assert split(merge_cards(old, self.new))[1] == split(self.new)[1]

    def test_what_the_replaced_component_said_goes(self) -> None:
        old = render_card("head", VALUES, TAGS, FACTS, relation="finetune").replace(
            "datasets:\n", "datasets:\n- my/own\n"
        )
        bare = render_card("head", VALUES, TAGS)
        kept, _ = split(merge_cards(old, bare))
        assert kept["base_model"] == ["timm/resnet18.a1_in1k"]  # nobody told that it was ours
        front, _ = split(merge_cards(old, bare, json.loads(json.dumps(FACTS.to_config()))))
        assert not {"model-index", "metrics", "base_model", "base_model_relation"} & front.keys()
        assert front["datasets"] == ["my/own"]

    @pytest.mark.parametrize("text", ["<!-- timm-compat:a -->\n", "<!-- timm-compat:facts -->\nx\n"])
    def test_unclosed_marks_take_no_time(self, text: str) -> None:
        old = "---\nx: y\n---\n" + text * 30_000
        start = time.thread_time()
        assert merge_cards(old, self.new).endswith(text * 30_000)
        assert time.thread_time() - start < 5

    def test_metadata_that_is_no_yaml_loses_to_ours(self) -> None:
        front, body = split(merge_cards("---\n: [broken\n---\ntext\n", self.new))
        assert front["tags"] == TAGS
        assert body == "text\n"


def test_rendering_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a card asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    space = tc.CompatSpace(8, methods=["rotation"]).finalize()
    assert 'from_pretrained("lab/head")' in tc.TaskHead(space, ["a"]).card("lab/head")
