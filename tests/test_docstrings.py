"""Every public name says what it is, and what can be called or made shows an example, which runs."""

import doctest
import inspect
from pathlib import Path

import pytest
import timm
import torch
from hub_server import LoopbackHub
from PIL import Image

import timm_compat as tc
from timm_compat.methods import registry

# What functions take or give back: their examples show it.
GIVEN_BACK = {"FitResult", "Found", "JoinReport", "MatrixOverSeeds", "RecombinationMatrix", "RetrievalScores"} | {
    *("SearchResult", "Result", "Seen", "Asked"),
    *("BuildReport", "GallerySearch", "Hit", "Record", "UpgradePlan", "UpgradeReport", "WayScores"),
    *(name for name in tc.experiments.__all__ if name.endswith(("Recipe", "Result"))),
}
ERRORS = {name: found for name, found in vars(tc.errors).items() if inspect.isclass(found)}
PACKAGES = {name: getattr(tc, name) for name in ("data", "evaluation", "experiments", "gallery")}
PUBLIC = {
    **{name: getattr(tc, name) for name in tc.__all__ if name != "__version__"},
    **{f"{home}.{name}": getattr(package, name) for home, package in PACKAGES.items() for name in package.__all__},
    **{f"errors.{name}": found for name, found in ERRORS.items()},
}
SHOWN = [
    name
    for name, found in PUBLIC.items()
    if callable(found) and found.__name__ not in GIVEN_BACK and found not in ERRORS.values()
]


def make_gallery() -> None:
    """What the examples of galleries find: photos, a gallery of them, and two extractors."""
    Path("photos").mkdir()
    for number in range(60):
        Image.new("RGB", (32, 32), (4 * number, 250 - 4 * number, 40 * (number % 3))).save(f"photos/{number}.png")
    for folder, seed in (("extractor", 0), ("new-extractor", 1)):
        space = tc.CompatSpace(32, methods=["rotation"], seed=seed).finalize()
        tc.create_extractor("test_resnet", space, img_size=32).save_pretrained(folder)
    tc.gallery.build("photos", "photos.gallery", "extractor")


@pytest.mark.parametrize("name", PUBLIC)
def test_says_what_it_is(name: str) -> None:
    assert len(inspect.getdoc(PUBLIC[name]) or "") > 20


SLOW = {"gallery.from_qdrant", "gallery.to_qdrant", "swap"} | {  # seconds each
    *("experiments.run_adaptation", "experiments.run_classifier_transfer", "experiments.run_finetune"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SHOWN])
def test_shows_an_example_that_runs(
    name: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.user("hf_alicesecret", "alice"))
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    if name in ("search", "pull", "load"):
        space = tc.CompatSpace(16, methods=["rotation"]).finalize()
        tc.TaskHead(space, [str(digit) for digit in range(10)]).push_to_hub("alice/digits-head")
    torch.manual_seed(0)
    if name.startswith("gallery."):
        make_gallery()
    thing = PUBLIC[name] if inspect.isclass(PUBLIC[name]) else inspect.unwrap(PUBLIC[name])
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs={"tc": tc, "torch": torch, "timm": timm})
    assert example.examples, f"{name}: show how it is used"
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=told.append)
    assert not result.failed, "".join(told)
