"""Recipes: read with every mistake named by its line, changed by overrides, written out in full and read again."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.cli.recipes import kind_of
from timm_compat.errors import ConfigError
from timm_compat.experiments import Recipe, read_recipe
from timm_compat.models.extractor import TRAINABLE
from timm_compat.recipes import reader, schema
from timm_compat.recipes.nodes import MAX_BYTES, NULL, compose
from timm_compat.recipes.reader import recipe_from_text
from timm_compat.recipes.reference import json_schema, markdown
from timm_compat.recipes.schema import DataRecipe, HeadRecipe, MemberRecipe, ReferenceRecipe, SpaceRecipe
from timm_compat.recipes.values import OWN_KEYS, Scalar, plain_scalar
from timm_compat.recipes.writer import recipe_to_text

RECIPES = sorted((Path(__file__).resolve().parents[1] / "scripts" / "recipes").glob("*.yaml"))
KINDS = ("train", "adapt", "transfer", "finetune")
# Those of the applications are of other kinds; their own tests read them.
READY = [path for path in RECIPES if ": timm-compat train " in path.read_text(encoding="utf-8").partition("\n")[0]]
READY_NAMES = [
    "adapter_pretrained",
    "caltech101_pair",
    "cifar10_cross_architecture",
    "cifar10_pair",
    "digits",
    "digits_add",
    "image_folder",
]

SMALL = """\
space:
  feature_dim: 64
members:
  - name: a
    backbone: test_resnet
    data: {dataset: digits}
  - name: b
    backbone: test_vit
    data:
      dataset: digits
      part: 2/2
training:
  epochs: 3
"""
DIGITS = DataRecipe("digits")
A = MemberRecipe("a", "test_resnet", DIGITS)
FULL = Recipe(
    space=SpaceRecipe(32, ("cat", "dog"), ("rotation", "simplex"), "map", "layer", 7),
    members=(
        MemberRecipe(
            "a",
            "resnet18",
            DataRecipe("folder", "images", "train", ("dog", "cat"), "1/3", 100, 5, True),
            test=DataRecipe("hfds/some/where", split="validation"),
            head=HeadRecipe(2, 48, 0.1, ("dog", "cat")),
            weights="a b.safetensors",
            trainable="adapter",
            img_size=(64, 32),
            out_index=-2,
            arguments={
                "in_chans": 1,
                "drop_path_rate": 1e-5,
                "act_layer": "silu",
                "x": None,
                "y": [1, 2.5, "no", True],
            },
        ),
        MemberRecipe("b", "test_vit", DIGITS, labelled=False, img_size=160),
    ),
    training=tc.TrainConfig(
        alignment="contrastive",
        influence_weight=0.5,
        lr=1e-7,
        output_dir="runs/x",
        log_with=("tensorboard",),
        opt_kwargs={"betas": [0.9, 0.95]},
    ),
    reference=ReferenceRecipe("old/extractor", "old/head"),
    pool=DataRecipe("npz", "pool.npz"),
    evaluate=False,
)


def refusal(text: str, overrides: Sequence[str] = ()) -> str:
    """What reading the text is refused with: one line."""
    with pytest.raises(ConfigError) as caught:
        recipe_from_text(Recipe, text, "r.yaml", overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# Reading


def test_a_small_recipe_and_its_defaults() -> None:
    b = MemberRecipe("b", "test_vit", replace(DIGITS, part="2/2"))
    assert recipe_from_text(Recipe, SMALL) == Recipe(SpaceRecipe(64), (A, b), tc.TrainConfig(epochs=3))


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "r.yaml").write_text(SMALL, encoding=encoding)
        assert (
            read_recipe(Recipe, tmp_path / "r.yaml")
            == read_recipe(Recipe, str(tmp_path / "r.yaml"))
            == recipe_from_text(Recipe, SMALL)
        )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("lr=1e-3", 0.001),
        ("lr=5", 5.0),
        ("lr=1_000.5", 1000.5),
        ("batch_size=1_000", 1000),
        ("batch_size='64'", 64),
        ("lr='1e-3'", 0.001),
        ("seed=-3", -3),
        ("mixed_precision=no", "no"),
        ("output_dir=2026-01-01", "2026-01-01"),
        ("output_dir=010", "010"),
        ("output_dir='null'", "null"),
        ("output_dir=null", None),
        ("output_dir=", None),
        ("clip_grad=~", None),
        ("clip_grad=.5", 0.5),
        ("compile=yes", True),
        ("log_with=[0, no, 1.50, =]", ("0", "no", "1.50", "=")),
        ("log_with=[]", ()),
        ("sched_kwargs={a: 1, b: 1e-3, c: [x, '1', null], d: off, e: 2026-01-01}", ...),
    ],
)
def test_a_value_becomes_what_its_field_asks_for(value: str, expected: Any) -> None:
    if expected is ...:
        expected = {"a": 1, "b": 0.001, "c": ["x", "1", None], "d": False, "e": "2026-01-01"}
    training = recipe_from_text(Recipe, SMALL, overrides=[f"training.{value}"]).training
    found = getattr(training, value.partition("=")[0])
    assert found == expected
    assert type(found) is type(expected)


def test_an_alias_stands_for_its_anchor() -> None:
    text = SMALL.replace("{dataset: digits}", "&images {dataset: digits, limit: 5}") + "pool: *images\n"
    recipe = recipe_from_text(Recipe, text, overrides=["training.alignment=l2"])
    assert recipe.pool == recipe.members[0].data == DataRecipe("digits", limit=5)


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_recipe(path: Path) -> None:
    first, text = path.read_text(encoding="utf-8").split("\n", 1)
    assert first.startswith("# ")
    assert first.endswith(f": timm-compat train scripts/recipes/{path.name}")
    recipe = read_recipe(Recipe, path)
    assert recipe.training.output_dir == f"runs/{path.stem}"
    assert all(member.test for member in recipe.members)
    assert recipe_from_text(Recipe, recipe_to_text(recipe)) == recipe
    assert "\t" not in text


def test_ready_recipes_are_all_there() -> None:
    assert [path.stem for path in READY] == READY_NAMES


def test_the_commented_reference_of_digits_add_reads_too() -> None:
    text = next(path for path in READY if path.stem == "digits_add").read_text(encoding="utf-8")
    recipe = recipe_from_text(Recipe, text.replace("# reference:", "reference:"), overrides=["training.alignment=l2"])
    assert recipe.reference == ReferenceRecipe("runs/digits/extractor-a", "runs/digits/head-a")


# Refusals


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs", "epocs", "13: training.epocs: unknown key; did you mean 'epochs'?"),
        ("training", "trainig", "12: trainig: unknown key; did you mean 'training'?"),
        ("part: 2/2", "prat: 2/2", "11: members.b.data.prat: unknown key; did you mean 'part'?"),
        (
            "{dataset: digits}",
            "{dataset: digits, qqq: 1}",
            "6: members.a.data.qqq: unknown key; expected one of dataset",
        ),
        ("feature_dim: 64", "feature_dim: 64\n  feature_dim: 32", "3: space.feature_dim: expected every key once"),
        ("feature_dim: 64", '"a\\nb": 64', "2: space.a\\nb: unknown key; expected one of feature_dim"),
        ("feature_dim: 64", "[a]: 64", "2: space: expected a word as a key, got a list of 1"),
        ("feature_dim: 64", "<<: {feature_dim: 64}", "2: space.<<: unknown key"),
        ("feature_dim: 64", "seed: [1]", "2: space.seed: expected an integer, got a list of 1"),
        ("feature_dim: 64", "feature_dim: many", "2: space.feature_dim: expected an integer, got 'many'"),
        ("feature_dim: 64", "feature_dim: 0x10", "2: space.feature_dim: expected an integer, got 0x10"),
        ("feature_dim: 64", "feature_dim: 1:30", "2: space.feature_dim: expected an integer, got 1:30"),
        ("feature_dim: 64", "feature_dim: " + "9" * 9000, "2: space.feature_dim: expected an integer, got 999"),
        ("feature_dim: 64", "feature_dim: yes", "2: space.feature_dim: expected an integer, got yes"),
        ("feature_dim: 64", "feature_dim:", "2: space.feature_dim: expected an integer, got nothing"),
        ("feature_dim: 64", "feature_dim: 0", "2: space.feature_dim: expected a number of at least 1, got 0"),
        ("feature_dim: 64", "methods: rotation", "2: space.methods: expected a list, got 'rotation'; write a list"),
        (
            "feature_dim: 64",
            "methods: [rotatio]",
            "2: space.methods.0: expected one of common_classes, flip, initial_weights",
        ),
        ("feature_dim: 64", "class_names: [a, a]", "2: space.class_names: expected every name once, got 'a' twice"),
        ("feature_dim: 64", "class_names: [a,\n    null]", "3: space.class_names.1: expected a string, got nothing"),
        (
            "feature_dim: 64",
            "class_names: [a, '']",
            "2: space.class_names.1: expected a string that is not blank, got ''",
        ),
        ("feature_dim: 64", "class_names: [a, [b]]", "2: space.class_names.1: expected a string, got a list of 1"),
        ("feature_dim: 64", "level: pool", "2: space.level: expected one of pooled, map, got 'pool'"),
        ("feature_dim: 64", "normalization: l2", "2: space.normalization: expected one of batch, layer, none"),
        ("feature_dim: 64", "level: !!python/name:os.system x", "2: space.level: expected plain YAML, got the tag"),
        ("feature_dim: 64", "level: !mine x", "2: space.level: expected plain YAML, got the tag '!mine'; drop it"),
        ("feature_dim: 64", "? !mine x\n  : 3", "2: space: expected plain YAML, got the tag '!mine'; drop it"),
        (
            "feature_dim: 64",
            "class_names: !!set {a, b}",
            "2: space.class_names: expected plain YAML, got the tag '!!set'",
        ),
        ("feature_dim: 64", "feature_dim: 64\n  folder: x", "3: space.folder: an existing space decides feature_dim"),
        (
            "feature_dim: 64",
            "methods: [rotation]\n  seed: 1\n  folder: x",
            "4: space.folder: an existing space decides m",
        ),
        ("space:\n  feature_dim: 64\n", "", "1: space: expected a value, got nothing; this key is required"),
        ("space:\n  feature_dim: 64\n", "space:\n", "1: space: expected a mapping, got nothing"),
        ("    backbone: test_vit\n", "", "7: members.b.backbone: expected a value, got nothing; this key is required"),
        ("  - name: b\n    back", "  - back", "7: members.1.name: expected a value, got nothing; this key is required"),
        ("name: b", "name: a", "7: members.1.name: expected every name once, got 'a' twice"),
        ("name: b", "name: my net", "7: members.my net.name: expected a name of letters, digits and _ that"),
        ("name: b", "name: 2b", "7: members.2b.name: expected a name of letters"),
        ("test_vit", "''", "8: members.b.backbone: expected a string that is not blank, got ''"),
        ("part: 2/2", "part: 3/2", "11: members.b.data.part: expected one of n parts, such as '1/2', got '3/2'"),
        ("part: 2/2", "part: 0.5", "11: members.b.data.part: expected one of n parts, such as '1/2', got '0.5'"),
        ("part: 2/2", "limit: 0", "11: members.b.data.limit: expected a number of at least 1, got 0"),
        ("part: 2/2", "classes: [x, x]", "11: members.b.data.classes: expected every name once, got 'x' twice"),
        ("part: 2/2", "skip_corrupt: 2", "11: members.b.data.skip_corrupt: expected true or false, got 2"),
        ("{dataset: digits}", "{dataset: folder}", "6: members.a.data.root: expected a path, as dataset 'folder' is"),
        ("{dataset: digits}", "digits", "6: members.a.data: expected a mapping, got 'digits'"),
        ("{dataset: digits}", "[digits]", "6: members.a.data: expected a mapping, got a list of 1"),
        ("epochs: 3", "epochs: -1", "13: training.epochs: expected a number of at least 1, got -1"),
        ("epochs: 3", "learning_rate: 0.1", "13: training.learning_rate: unknown key; it is called lr now"),
        ("epochs: 3", "random_flip: true", "13: training.random_flip: unknown key; it is called hflip (a probabil"),
        ("epochs: 3", "color_jitter: 2", "13: training.color_jitter: expected a number of at most 1, got 2"),
        ("epochs: 3", "lr: .inf", "13: training.lr: expected a finite number, got .inf"),
        ("epochs: 3", "lr: 1e999", "13: training.lr: expected a finite number, got '1e999'"),
        ("epochs: 3", "lr: nan", "13: training.lr: expected a finite number, got 'nan'"),
        ("epochs: 3", "clip_grad: x", "13: training.clip_grad: expected a finite number, got 'x'"),
        ("epochs: 3", "compile: maybe", "13: training.compile: expected true or false, got 'maybe'"),
        (
            "epochs: 3",
            "mixed_precision: fp8",
            "13: training.mixed_precision: expected 'no', 'fp16' or 'bf16', got 'fp8'",
        ),
        (
            "epochs: 3",
            "batch_size: 9\n  grad_accum_steps: 2",
            "14: training.grad_accum_steps: expected a div",
        ),
        (
            "epochs: 3",
            "influence_weight: 1",
            "13: training.influence_weight: needs the head of the reference, got none",
        ),
        (
            "epochs: 3",
            "distillation_weight: 1\nreference: {extractor: x}",
            "13: training.distillation_weight: needs the",
        ),
        ("  epochs: 3", "  epochs: 3\nreference: {extractor: x}", "14: reference: nothing uses it; set training.align"),
        ("  epochs: 3", "  epochs: 3\nreference: {head: x}", "14: reference.extractor: expected a value, got nothing"),
        ("  epochs: 3", "  epochs: 3\npool: {dataset: digits}", "14: pool: nothing uses it; set training.alignment"),
        ("  epochs: 3", "  epochs: 3\nevaluate: 2", "14: evaluate: expected true or false, got 2"),
        ("  epochs: 3", "\tepochs: 3", "13: expected YAML, got an error: found character '\\t' that cannot start"),
        ("  epochs: 3", "  epochs: [3", "14: expected YAML, got an error: expected ',' or ']'"),
        ("  epochs: 3", "  epochs: *x", "13: expected YAML, got an error: found undefined alias 'x'"),
        ("  epochs: 3", "  epochs: 3\n---\na: 1", "14: expected YAML, got an error: but found another document"),
        ("epochs: 3", "epochs: 3\x00", "13: expected YAML, got a character that it does not allow"),
    ],
)
def test_a_refusal_names_line_path_and_way_out(old: str, new: str, expected: str) -> None:
    assert old in SMALL
    assert refusal(SMALL.replace(old, new, 1)).startswith(f"r.yaml:{expected}")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("pretrained: true\n    weights: x.safetensors", "8: members.a.weights: expected a checkpoint or pretrained"),
        ("labelled: false\n    test: {dataset: digits}", "8: members.a.test: a member without labels has no head"),
        ("labelled: false\n    head: {depth: 2}", "8: members.a.head: a member without labels has no head"),
        ("head: {depth: 0}", "7: members.a.head.depth: expected a number of at least 1, got 0"),
        ("head: {hidden_dim: 0}", "7: members.a.head.hidden_dim: expected a number of at least 1, got 0"),
        ("head: {drop_rate: 1}", "7: members.a.head.drop_rate: expected a number under 1, got 1"),
        ("trainable: none", "7: members.a.trainable: expected one of full, adapter, frozen, got 'none'"),
        ("img_size: 0", "7: members.a.img_size: expected a number of at least 1, got 0"),
        ("img_size: [32, 0]", "7: members.a.img_size.1: expected a number of at least 1, got 0"),
        (
            "img_size: [1, 2, 3]",
            "7: members.a.img_size: expected a list of 2, got a list of 3",
        ),
        ("out_index: last", "7: members.a.out_index: expected an integer, got 'last'"),
        ("arguments: 3", "7: members.a.arguments: expected a mapping, got 3"),
        ("arguments: {in-chans: 1}", "7: members.a.arguments: expected keywords of timm, got 'in-chans'"),
        ("arguments: {img_size: 3}", "7: members.a.arguments.img_size: is no argument of the architecture; it has"),
        (
            "arguments: {x: {y: 1}}",
            "7: members.a.arguments.x: expected a string, a number, true, false, null or a list",
        ),
        ("arguments: {x: [[1]]}", "7: members.a.arguments.x: expected a string, a number, true, false, null or a list"),
        (
            "arguments: {x: &x [*x]}",
            "7: members.a.arguments.x.0: expected an alias of something else than what it stands in",
        ),
        (
            "arguments: &x {x: *x}",
            "7: members.a.arguments.x: expected an alias of something else than what it stands in",
        ),
        ("arguments: {x: .nan}", "7: members.a.arguments.x: expected a finite number, or a string in quotes, got .nan"),
        ("arguments: {x: 017}", "7: members.a.arguments.x: expected a finite number, or a string in quotes, got 017"),
    ],
)
def test_a_member_that_contradicts_itself(keys: str, expected: str) -> None:
    text = SMALL.replace("    data: {dataset: digits}", f"    data: {{dataset: digits}}\n    {keys}")
    assert refusal(text).startswith(f"r.yaml:{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: expected a mapping, got nothing"),
        ("# only words\n", "1: expected a mapping, got nothing"),
        ("- a\n", "1: expected a mapping, got a list of 1"),
        ("words", "1: expected a mapping, got 'words'"),
        ("space: {}\nmembers: []\n", "2: members: expected at least one, got none"),
        ("space: {}\nmembers: {a: {}}\n", "2: members: expected a list, got a mapping"),
        ("space: {}\nmembers: [a]\n", "2: members.0: expected a mapping, got 'a'"),
        ("space: {}\n", "1: members: expected a value, got nothing; this key is required"),
        ('"\\UFFFFFFFF"', ""),
        ("{a: " * 2000, ""),
        ("%YAML 99.1\n---\na", "1: expected YAML, got an error: found incompatible YAML document"),
        ("!<%FF> a", "1: expected YAML, got an error"),
    ],
)
def test_texts_that_are_no_recipe(text: str, expected: str) -> None:
    assert refusal(text).startswith(f"r.yaml:{expected}" if expected else "r.yaml: expected")


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
space: {methods: [rotatio], methods: [], level: !mine map}
members:
  - {name: 1st, backbone: "", data: {dataset: digits, prat: 1/2}, img_size: [32]}
  - {name: b, data: {dataset: folder}, labelled: false, head: {depth: 2}}
training: {epochs: 0, batch_size: -1, compile: 7}
evaluat: true
"""
    with pytest.raises(ConfigError) as caught:
        recipe_from_text(Recipe, text, "r.yaml", ["training.clip_grad=x"])
    assert str(caught.value).splitlines() == [
        "r.yaml:1: space.methods: expected every key once, got it a second time (first: r.yaml:1)",
        "r.yaml:1: space.level: expected plain YAML, got the tag '!mine'; drop it",
        "r.yaml:1: space.methods.0: expected one of common_classes, flip, initial_weights, location, rotation, "
        "simplex, got 'rotatio'",
        "override 'training.clip_grad=x': training.clip_grad: expected a finite number, got 'x'",
        "r.yaml:3: members.1st.name: expected a name of letters, digits and _ that starts with no digit, got '1st'",
        "r.yaml:3: members.1st.data.prat: unknown key; did you mean 'part'?",
        "r.yaml:3: members.1st.backbone: expected a string that is not blank, got ''",
        "r.yaml:3: members.1st.img_size: expected a longer list, got a list of 1",
        "r.yaml:4: members.b.backbone: expected a value, got nothing; this key is required",
        "r.yaml:4: members.b.data.root: expected a path, as dataset 'folder' is read from there, got none",
        "r.yaml:5: training.epochs: expected a number of at least 1, got 0",
        "r.yaml:5: training.batch_size: expected a number of at least 1, got -1",
        "r.yaml:5: training.compile: expected true or false, got 7",
        "r.yaml:6: evaluat: unknown key; did you mean 'evaluate'?",
    ]


def test_contradictions_and_limits_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_from_text(
            Recipe, SMALL + "  batch_size: 0\n  alignment: x\n  best_metric: y\npool: {dataset: npz}\n", "r.yaml"
        )
    assert [line.partition(": expected")[0] for line in str(caught.value).splitlines()] == [
        "r.yaml:14: training.batch_size",
        "r.yaml:15: training.alignment",
        "r.yaml:17: pool.root",
    ]


def test_many_mistakes_are_counted() -> None:
    unknown = "".join(f"key{number}: 1\n" for number in range(30))
    with pytest.raises(ConfigError, match=r"key19: unknown key.*\n\.\.\. and 10 more mistakes$"):
        recipe_from_text(Recipe, SMALL + unknown)


@pytest.mark.parametrize("text", ["&a [*a]", "&a {space: *a, members: *a}"])
def test_an_alias_within_itself(text: str) -> None:
    with pytest.raises(ConfigError, match="expected an alias of something else than what it stands in"):
        recipe_from_text(Recipe, text)


def test_aliases_do_not_multiply_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_VALUES", 1000)
    names = ", ".join(f"c{number}" for number in range(100))
    many = ", ".join("{name: a, backbone: x, data: *data}" for _ in range(20))
    text = f"pool: &data {{dataset: digits, classes: [{names}]}}\nspace: {{}}\nmembers: [{many}]\n"
    assert "expected at most 1000 values, got more" in refusal(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    for content, expected in (
        (None, "r.yaml: expected a recipe, a YAML file, but it cannot be read"),
        (b"space: {}\nmembers: \xff", "r.yaml:2: expected UTF-8 text"),
        (SMALL.encode("utf-16"), "r.yaml:1: expected UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), f"r.yaml: expected a recipe of at most {MAX_BYTES} bytes"),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(expected)):
            read_recipe(Recipe, file)
    for path in (tmp_path, tmp_path / "r.yaml" / "x", "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_recipe(Recipe, path)
    with pytest.raises(ConfigError, match=f"at most {MAX_BYTES} bytes"):
        recipe_from_text(Recipe, "#" * (MAX_BYTES + 1))


# Overrides


@pytest.mark.parametrize(
    ("override", "where", "expected"),
    [
        ("training.epochs=5", lambda recipe: recipe.training.epochs, 5),
        (" training.epochs =5", lambda recipe: recipe.training.epochs, 5),
        ("training.opt=sgd", lambda recipe: recipe.training.opt, "sgd"),
        ("training={epochs: 9, seed: 1}", lambda recipe: recipe.training, tc.TrainConfig(epochs=9, seed=1)),
        ("members.a.backbone=resnet18", lambda recipe: recipe.members[0].backbone, "resnet18"),
        ("members.1.backbone=resnet18", lambda recipe: recipe.members[1].backbone, "resnet18"),
        ("members.b.name=c", lambda recipe: recipe.members[1].name, "c"),
        ("members.a.head.depth=2", lambda recipe: recipe.members[0].head, HeadRecipe(depth=2)),
        ("members.a.test.dataset=digits", lambda recipe: recipe.members[0].test, DIGITS),
        ("members.b.data.part=null", lambda recipe: recipe.members[1].data, DIGITS),
        ("members.a.arguments.in_chans=1", lambda recipe: recipe.members[0].arguments, {"in_chans": 1}),
        ("members.a.img_size=[32, 64]", lambda recipe: recipe.members[0].img_size, (32, 64)),
        ("members=[{name: x, backbone: y, data: {dataset: z}}]", lambda recipe: len(recipe.members), 1),
        ("space.methods=[rotation]", lambda recipe: recipe.space.methods, ("rotation",)),
        ("space.class_names=['a=b', c]", lambda recipe: recipe.space.class_names, ("a=b", "c")),
        ("evaluate=no", lambda recipe: recipe.evaluate, False),
    ],
)
def test_an_override(override: str, where: Any, expected: Any) -> None:
    assert where(recipe_from_text(Recipe, SMALL, overrides=[override])) == expected


def test_overrides_build_on_each_other_and_the_last_one_wins() -> None:
    overrides = ["training.alignment=l2", "reference.extractor=x", "reference.head=y", "reference.extractor=z"]
    assert recipe_from_text(Recipe, SMALL, overrides=overrides).reference == ReferenceRecipe("z", "y")
    assert recipe_from_text(Recipe, SMALL + "reference: null\n", overrides=overrides).reference == ReferenceRecipe(
        "z", "y"
    )


def test_overrides_alone_make_a_recipe() -> None:
    overrides = ["space.feature_dim=8", "members=[{name: a, backbone: test_resnet, data: {dataset: digits}}]"]
    assert recipe_from_text(Recipe, "", overrides=overrides) == Recipe(SpaceRecipe(8), (A,))


def test_an_override_can_mend_a_mistake_in_the_file() -> None:
    assert (
        recipe_from_text(
            Recipe, SMALL.replace("epochs: 3", "epochs: x"), overrides=["training.epochs=3"]
        ).training.epochs
        == 3
    )


def test_an_override_of_an_alias_changes_one_place_only() -> None:
    text = SMALL.replace("{dataset: digits}", "&d {dataset: digits}") + "pool: *d\n"
    recipe = recipe_from_text(Recipe, text, overrides=["training.alignment=l2", "pool.limit=3"])
    assert recipe.members[0].data == DIGITS
    assert recipe.pool == DataRecipe("digits", limit=3)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epocs=3", "training.epocs: unknown key; did you mean 'epochs'?"),
        ("trainig.epochs=3", "trainig: unknown key; did you mean 'training'?"),
        ("members.a.head.dept=2", "members.a.head.dept: unknown key; did you mean 'depth'?"),
        ("members.aa.backbone=x", "members: nothing is called 'aa'; did you mean 'a'?"),
        ("members.7.backbone=x", "members: nothing is called '7'; expected one of a, b"),
        ("training.epochs=many", "training.epochs: expected an integer, got 'many'"),
        ("training.epochs=0", "training.epochs: expected a number of at least 1, got 0"),
        ("training.epochs.x=0", "training.epochs: expected a mapping with the key 'x', got one value"),
        ("space.seed.x=0", "space.seed: expected an integer, got a mapping"),
        ("reference.head=x", "reference.extractor: expected a value, got nothing; this key is required"),
        ("training.influence_weight=1", "training.influence_weight: needs the head of the reference, got none"),
        ("space.folder=x", "space.folder: an existing space decides feature_dim itself"),
        ("training.epochs=[3", "expected YAML, got an error: expected ',' or ']', but got '<stream end>'"),
        ("training.epochs=3\x00", "expected YAML, got a character that it does not allow"),
        ("training.epochs=!!python/name:os.system x", "training.epochs: expected plain YAML, got the tag"),
        ("training.epochs=*x", "expected YAML, got an error: found undefined alias 'x'"),
        ("training.epochs", "expected PATH=VALUE, such as training.epochs=3"),
        ("training..epochs=3", "expected PATH=VALUE"),
        ("=3", "expected PATH=VALUE"),
    ],
)
def test_an_override_that_is_refused(override: str, expected: str) -> None:
    assert refusal(SMALL, [override]).startswith(f"override {override!r}: {expected}")


def test_a_text_is_no_mapping_for_overrides() -> None:
    assert refusal("words", ["a.b=1"]).startswith("override 'a.b=1': recipe: expected a mapping with the key 'a'")


# Writing


@pytest.mark.parametrize("recipe", [FULL, Recipe(SpaceRecipe(folder="x"), (A,)), recipe_from_text(Recipe, SMALL)])
def test_round_trip(recipe: Recipe) -> None:
    text = recipe_to_text(recipe)
    assert recipe_from_text(Recipe, text) == recipe
    assert recipe_to_text(recipe_from_text(Recipe, text)) == text


def test_what_is_written_is_complete_and_plain() -> None:
    text = recipe_to_text(FULL)
    assert "*" not in text
    assert "&" not in text
    plain = yaml.safe_load(text)
    assert list(plain) == ["space", "members", "training", "reference", "pool", "evaluate"]
    assert plain["training"]["best_metric"] is None
    assert plain["members"][1]["data"] == {**vars(DIGITS), "classes": []}
    assert plain["members"][0]["img_size"] == [64, 32]


def test_paths_are_kept_as_texts() -> None:
    training = tc.TrainConfig(output_dir=Path("runs") / "x", opt_kwargs={"betas": (0.9, 0.95)})
    recipe = Recipe(SpaceRecipe(), (replace(A, img_size=[8, 8], arguments={"x": (1, 2)}),), training)  # type: ignore[arg-type]
    assert recipe.training.output_dir == str(Path("runs/x"))
    assert recipe_from_text(Recipe, recipe_to_text(recipe)) == recipe


AWKWARD = (
    *(
        "0",
        "no",
        "Yes",
        "on",
        "1e3",
        "1e-3",
        "null",
        "~",
        "true",
        "010",
        "0x1f",
        "1:30",
        ".inf",
        "nan",
        "-",
        "- a",
        "?",
    ),
    *(
        "=",
        "<<",
        "2026-01-01",
        "a: b",
        "a #b",
        "#a",
        "*a",
        "&a",
        "!a",
        "!!str a",
        "%a",
        "@a",
        "`a",
        "'",
        '"',
        "''",
        "\\",
    ),
    *(" a", "a ", "a\nb", "a\n", "\na", "a\tb", "\ta", "a\r\nb", "[", "]", "{a}", "a, b", "|", ">", "---", "...", ","),
    *(
        "ä",
        "犬",
        "🐕",
        "\u2028",
        "\x85x",
        "\ufeffx",
        "\x00",
        "\x1b[31m",
        "a" * 300,
        "a b " * 100,
        "${x}",
        "1_0",
        "+1",
    ),
)


def test_awkward_names_survive() -> None:
    names = tuple(name for name in AWKWARD if name.strip())
    draw = random.Random(0)
    alphabet = "aZ09 .:-#'\"\\[]{},&*!|>%@`~=?_+\n\t\r\x07\x85\u2028éЖ字🐕"
    words = ("".join(draw.choices(alphabet, k=draw.randint(1, 12))) for _ in range(600))
    names = tuple(dict.fromkeys((*names, *(word for word in words if word.strip()))))
    arguments = {f"x{number}": name for number, name in enumerate(names)}
    member = MemberRecipe(
        "null", "no", DataRecipe("1e3", "~", classes=names), arguments={**arguments, "no": list(names)}
    )
    recipe = Recipe(SpaceRecipe(class_names=names), (member,))
    assert recipe_from_text(Recipe, recipe_to_text(recipe)) == recipe


# The schema itself


def test_names_that_other_floors_own() -> None:
    assert schema.TRAINABLE == TRAINABLE
    keywords = tc.create_extractor.__annotations__.keys() - {"return", "timm_kwargs"}
    assert set(OWN_KEYS) == keywords


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: SpaceRecipe(methods="rotation"), "methods: expected a list, got 'rotation'"),
        (lambda: SpaceRecipe(class_names=3), "class_names: expected a list, got 3"),
        (lambda: SpaceRecipe(seed="x"), "seed: expected an integer, got 'x'"),
        (lambda: DataRecipe(3), "dataset: expected a string, got 3"),
        (lambda: DataRecipe("digits", part="2"), "part: expected one of n parts"),
        (
            lambda: replace(A, img_size=[1, 2, 3]),
            "img_size: expected an integer, got [1, 2, 3]\nimg_size: expected a list of 2",
        ),
        (lambda: replace(A, arguments={"x": object}), "arguments.x: expected a string, a number"),
        (lambda: replace(A, arguments={"x": float("nan")}), "arguments.x: expected a finite number, got nan"),
        (lambda: replace(A, arguments=[1]), "arguments: expected a mapping, got [1]"),
        (lambda: ReferenceRecipe(""), "extractor: expected a string that is not blank, got ''"),
        (lambda: DataRecipe(), "dataset: expected a value, got nothing"),
        (lambda: DataRecipe("digits", prat="1/2"), "prat: expected no such key, got '1/2'"),
        (lambda: Recipe(SpaceRecipe(), ()), "members: expected at least one, got none"),
        (lambda: Recipe(SpaceRecipe(), (A, A)), "members.1.name: expected every name once, got 'a' twice"),
    ],
)
def test_recipes_built_by_hand_are_checked(build: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}"):
        build()


def test_lists_given_by_hand_become_tuples() -> None:
    names: Any = ["a", "b"]
    assert SpaceRecipe(class_names=names) == SpaceRecipe(class_names=("a", "b"))


# The JSON schema


def test_a_schema_accepts_what_the_reader_accepts() -> None:
    for kind, path in [(kind, path) for kind in KINDS for path in RECIPES if of_kind(kind, path)]:
        check(kind, path.read_text(encoding="utf-8"))
    assert sum(of_kind(kind, path) for kind in KINDS for path in RECIPES) == len(RECIPES)
    check("train", SMALL + "reference: null\n")
    check("train", recipe_to_text(FULL))
    check("train", SMALL.replace("part: 2/2", "classes: [no, 01, 1e3, 2026-01-01]"))


def test_a_schema_accepts_the_recipes_of_the_documents() -> None:
    root = RECIPES[0].parents[2]
    texts = [path.read_text(encoding="utf-8") for path in (root / "README.md", *root.glob("docs/**/*.md"))]
    blocks = [block for text in texts for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    keys = {"members": "train", "transfer": "transfer", "upgrade": "transfer", "source": "adapt", "target": "finetune"}
    found = [(next((keys[key] for key in keys if f"\n{key}:" in f"\n{block}"), None), block) for block in blocks]
    assert any(kind for kind, _ in found)
    for kind, block in found:
        if kind is not None:
            check(kind, block)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs: 3", "epocs: 3", "'epocs' was unexpected"),
        ("part: 2/2", "prat: 2/2", "'prat' was unexpected"),
        ("    backbone: test_vit\n", "", "'backbone' is a required property"),
        ("feature_dim: 64", "feature_dim: 0", "0 is less than the minimum of 1"),
        ("feature_dim: 64", "level: pool", "'pool' is not one of"),
        ("feature_dim: 64", "methods: rotation", "'rotation' is not of type 'array'"),
    ],
)
def test_a_schema_refuses(old: str, new: str, expected: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=re.escape(expected)):
        check("train", SMALL.replace(old, new))


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    text = markdown(schema)
    for model in (schema, *schema["$defs"].values()):
        assert model["description"]
        assert "\n" not in model["description"]
        for key, about in model["properties"].items():
            assert about["description"], key
            assert f"| `{key}` |" in text


def test_a_reference_names_type_default_and_meaning() -> None:
    text = markdown(json_schema(Recipe))
    assert text.startswith("## Recipe\n\nA whole training run.")
    assert "| `members` | list of [MemberRecipe](#memberrecipe) | required | the networks, at least one. |" in text
    assert '| `level` | `"pooled"` or `"map"` | `"pooled"` | "pooled" or "map". |' in text
    assert "| `limit` | integer or null | `null` | maximum number of images. |" in text
    assert "\n## TrainConfig\n" in text


def check(kind: str, text: str) -> None:
    """Validate a recipe as an editor does, which reads YAML 1.2."""
    jsonschema.validate(plain(compose(text, "r.yaml")), json_schema(kind_of(kind)))


def of_kind(kind: str, path: Path) -> bool:
    return f": timm-compat {kind} " in path.read_text(encoding="utf-8").partition("\n")[0]


def plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(item) for item in node.value]
    if node.tag == NULL:
        return None
    if node.tag.endswith(":bool") and node.value.lower() not in ("true", "false"):
        return node.value
    return int(node.value) if node.value.isdecimal() else plain_scalar("", Scalar.of(node))
