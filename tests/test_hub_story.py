"""Three people who never talk: one publishes a space, another adds to it, a third combines parts of both."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_parts import run_python
from hub_server import LoopbackHub
from PIL import Image

import timm_compat as tc
from timm_compat.cli import main

SETTINGS = {"in_chans": 1, "img_size": 16}
TRAINING = {"batch_size": 64, "epochs": 10, "random_crop": 1, "lr": 6e-3}


@pytest.fixture
def people(hub: LoopbackHub) -> dict[str, str]:
    return {name: hub.user(f"hf_{name}secret", name) for name in ("alice", "bob", "carol")}


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    code = main([str(word) for word in (*words, "--json")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


@pytest.mark.slow
def test_the_story(
    hub: LoopbackHub, people: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    train, test = tc.data.load_digits("train"), tc.data.load_digits("test")
    first, second = train.halves(torch.Generator().manual_seed(0))

    # Alice trains a member in a space of her own and publishes space, extractor and head.
    monkeypatch.setenv("HF_TOKEN", people["alice"])
    torch.manual_seed(0)
    space = tc.CompatSpace(32, train.class_names, ["common_classes"])
    a, head_a = tc.create_extractor("test_resnet", space, **SETTINGS), tc.TaskHead(space, train.class_names)
    tc.fit(space, [tc.Member("a", a, head_a, first)], tc.TrainConfig(**TRAINING), progress=None)
    native = tc.recombination_matrix({"a": a}, {"a": head_a}, test)
    a.facts = native.facts("digits", "a", replace(a.facts, license="apache-2.0", datasets=("digits",)))
    head_a.facts = a.facts
    space.push_to_hub("alice/digits-space")
    a.push_to_hub("alice/digits-extractor")
    head_a.push_to_hub("alice/digits-head")

    card = hub.files("alice/digits-extractor")["README.md"].decode()
    for told in (f"{native.native_accuracy:.3f}", "- methods: common_classes", "- seed: 0", "license: apache-2.0"):
        assert told in card
    assert hub.files("alice/digits-extractor")["matrix.png"].startswith(b"\x89PNG")

    # Bob knows the space's name only. He adds a member of his own; Alice's components are not touched.
    monkeypatch.setenv("HF_TOKEN", people["bob"])
    before = {name: hub.files(name) for name in ("alice/digits-space", "alice/digits-extractor", "alice/digits-head")}
    his = tc.CompatSpace.from_pretrained("alice/digits-space")
    torch.manual_seed(1)
    b, head_b = tc.create_extractor("test_efficientnet", his, **SETTINGS), tc.TaskHead(his, train.class_names)
    tc.fit(his, [tc.Member("b", b, head_b, second)], tc.TrainConfig(**TRAINING, seed=1), progress=None)
    head_b.facts = tc.Facts(license="mit")
    head_b.push_to_hub("bob/digits-head")
    assert {name: hub.files(name) for name in before} == before

    # Carol searches, combines, predicts, and publishes a plain timm model.
    monkeypatch.setenv("HF_TOKEN", people["carol"])
    rows = command(capsys, "search", "--space", "alice/digits-space")
    assert {row["repo_id"]: row["license"] for row in rows} == {
        "alice/digits-space": None,
        "alice/digits-extractor": "apache-2.0",
        "alice/digits-head": "apache-2.0",
        "bob/digits-head": "mit",
    }
    (extractor_id,) = (row["repo_id"] for row in rows if row["role"] == "extractor")
    composed = command(capsys, "compose", extractor_id, "bob/digits-head", "--output", tmp_path / "model")
    assert composed["class_names"] == list(train.class_names)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(test.images[:40, 0].numpy()):
        Image.fromarray(image).save(pictures / f"{number:02}.png")
    predicted = command(capsys, "predict", tmp_path / "model", pictures)
    names = [one["classes"][0]["name"] for one in predicted]
    right = [name == test.class_names[label] for name, label in zip(names, test.labels[:40].tolist(), strict=True)]
    assert sum(right) / len(right) > 0.8  # parts that were never trained together; chance is 0.1
    pushed = command(capsys, "push", tmp_path / "model", "carol/digits", "--fuse", "--license", "mit")
    again = command(capsys, "predict", "carol/digits", pictures)
    assert [one["classes"][0]["name"] for one in again] == names
    card = hub.files("carol/digits")["README.md"].decode()
    for part in ("alice/digits-extractor", "bob/digits-head"):
        assert re.search(rf"`{part}` at commit `[0-9a-f]{{40}}`", card)

    # Anybody, without this package.
    raw = test.images[:40]
    torch.save(tc.load(tmp_path / "model").extractor.preprocess(raw), tmp_path / "images")
    script = (
        "import sys, timm, torch\n"
        f"model = timm.create_model('hf-hub:carol/digits@{pushed['commit']}', pretrained=True).eval()\n"
        "assert 'timm_compat' not in sys.modules\n"
        "labels = model.pretrained_cfg['label_names']\n"
        f"print(*[labels[index] for index in model(torch.load({str(tmp_path / 'images')!r})).argmax(dim=1)])\n"
    )
    assert run_python(script).stdout.split() == names
