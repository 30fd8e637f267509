"""The three questions: which trainings answer each, by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from timm_compat.experiments.finetune.cost import Curve
from timm_compat.experiments.finetune.learning import Target, check_head, evaluator, learn
from timm_compat.experiments.finetune.recipe import FinetuneRecipe
from timm_compat.experiments.finetune.sources import Networks
from timm_compat.experiments.networks import copied, new_head, untrained
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.seeding import seeded

START, CHEAP_HEAD, ADAPTERS = "start", "cheap_head", "adapters"
SCRATCH, NEW_HEAD, COMPATIBLE_HEAD = "from scratch", "new head", "compatible head"
OWN_EXTRACTOR = "the head on its own extractor"
CHEAP, DIRECT, CHEAP_ALONE = "trained on cheap, run on expensive", "trained on expensive", "trained and run on cheap"
WHOLE, ADAPTER, HEAD_ALONE = "whole network", "adapter", "head alone"
# What the others of a section are held against.
USUAL = {START: NEW_HEAD, CHEAP_HEAD: DIRECT, ADAPTERS: WHOLE}


@dataclass(frozen=True)
class Learned:
    """A training's curve, and what was trained; None of what was not."""

    curve: Curve
    extractor: CompatExtractor | None
    head: TaskHead | None


Way = Callable[[str | None], Learned]  # takes the label of the progress bar


def ways(
    recipe: FinetuneRecipe, seed: int, target: Target, networks: Networks, features: Path | None = None
) -> dict[str, dict[str, Way]]:
    """Trainings by section and name, none of them run yet; what is wrong with their parts is refused here.

    The folder ``features`` keeps those of test images, which cost no training anything.
    """
    sections = {START: _start, CHEAP_HEAD: _cheap_head, ADAPTERS: _adapters}
    asked = {section: make for section, make in sections.items() if getattr(recipe, section) is not None}
    return {section: make(recipe, seed, target, networks, features) for section, make in asked.items()}


def _start(
    recipe: FinetuneRecipe, seed: int, target: Target, networks: Networks, features: Path | None
) -> dict[str, Way]:
    assert recipe.start is not None
    given, config = recipe.start, replace(recipe.training, seed=seed)
    extractor, head = networks.extractor("start.extractor", given.extractor), networks.head("start.head", given.head)
    extractor.space.require_same(head.space, f"start.extractor {given.extractor!r}", f"start.head {given.head!r}")
    check_head(f"start.head {given.head!r}", head, target)
    seen = target.seen_by(extractor)

    def training(like: TaskHead | None, from_scratch: bool = False) -> Way:
        def run(progress: str | None) -> Learned:
            with seeded(seed, "start"):
                started = untrained(extractor) if from_scratch else copied(extractor, "full")
            own = new_head(started.space, target.train.class_names, like)
            return Learned(learn(started, own, seen, config, progress=progress), started, own)

        return run

    found: dict[str, Way] = {SCRATCH: training(None, from_scratch=True)} if given.scratch else {}
    found |= {NEW_HEAD: training(None), COMPATIBLE_HEAD: training(head)}
    if given.head in networks.named:
        found[OWN_EXTRACTOR] = _as_it_is(networks.named[given.head].extractor, head, target, features)
    return found


def _as_it_is(extractor: CompatExtractor, head: TaskHead, target: Target, features: Path | None) -> Way:
    def run(progress: str | None) -> Learned:
        whole = new_head(head.space, target.train.class_names, head)
        accuracy = evaluator(extractor, whole, target.seen_by(extractor).test, features)()
        return Learned(Curve((0,), (0.0,), (accuracy,)), None, None)

    return run


def _cheap_head(
    recipe: FinetuneRecipe, seed: int, target: Target, networks: Networks, features: Path | None
) -> dict[str, Way]:
    assert recipe.cheap_head is not None
    given = recipe.cheap_head
    cheap = networks.extractor("cheap_head.cheap", given.cheap)
    expensive = networks.extractor("cheap_head.expensive", given.expensive)
    names = f"cheap_head.cheap {given.cheap!r}", f"cheap_head.expensive {given.expensive!r}"
    cheap.space.require_same(expensive.space, *names)
    config = replace(recipe.frozen_training, seed=seed)

    def training(teacher: CompatExtractor, runs_on: CompatExtractor) -> Way:
        def run(progress: str | None) -> Learned:
            frozen, expensive = copied(teacher, "frozen"), copied(runs_on, "frozen")
            head = new_head(frozen.space, target.train.class_names)
            measure = evaluator(expensive, head, target.seen_by(expensive).test, features)
            curve = learn(frozen, head, target.seen_by(frozen), config, measure=measure, progress=progress)
            return Learned(curve, None, new_head(cheap.space, head.class_names, head))

        return run

    alone = {DIRECT: training(expensive, expensive), CHEAP_ALONE: training(cheap, cheap)}
    return {CHEAP: training(cheap, expensive), **alone}


def _adapters(
    recipe: FinetuneRecipe, seed: int, target: Target, networks: Networks, features: Path | None
) -> dict[str, Way]:
    assert recipe.adapters is not None
    extractor = networks.extractor("adapters.extractor", recipe.adapters.extractor)
    seen = target.seen_by(extractor)

    def training(trainable: str) -> Way:
        def run(progress: str | None) -> Learned:
            started = copied(extractor, trainable)
            head = new_head(started.space, target.train.class_names)
            config = replace(recipe.training if trainable == "full" else recipe.frozen_training, seed=seed)
            measure = evaluator(started, head, seen.test, features)
            curve = learn(started, head, seen, config, measure=measure, progress=progress)
            if trainable == "frozen":
                return Learned(curve, None, new_head(extractor.space, head.class_names, head))
            return Learned(curve, started, head)

        return run

    return {WHOLE: training("full"), ADAPTER: training("adapter"), HEAD_ALONE: training("frozen")}
