"""The modes of one seed. Each is trained when it is first asked for; one starts from another."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm_compat.applications.domain_adaptation.domains import Domains
from timm_compat.applications.domain_adaptation.given import Given
from timm_compat.applications.domain_adaptation.networks import (
    new_extractor,
    opinion,
    pair_in,
    tied_copy,
    with_statistics_of,
)
from timm_compat.applications.domain_adaptation.recipe import LEARNT, AdaptRecipe
from timm_compat.applications.domain_adaptation.selection import (
    LAST,
    Watch,
    choose,
    regret,
    unlabelled_scores,
)
from timm_compat.applications.trials import Trials
from timm_compat.config import TrainConfig
from timm_compat.evaluation.matrix import pair_accuracy
from timm_compat.methods.pseudo_labels import centre_labels, surest
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace
from timm_compat.training.members import Images, Member

SOURCE, TARGET = "source", "target"


@dataclass(frozen=True)
class Adapted:
    """What a mode gave.

    Attributes:
        extractor: of target images.
        head: of the source, which runs on it.
        source_extractor: of source images, where the mode trained one.
        candidates: the epochs or rounds among which the result was chosen, with their scores.
    """

    extractor: CompatExtractor
    head: TaskHead
    source_extractor: CompatExtractor | None = None
    candidates: Sequence[Mapping[str, Any]] = ()


class SeedRun:
    """All modes of one seed.

    Args:
        recipe: of the adaptation.
        domains: the seed's images.
        trials: keeps results and trainings.
        seed: of everything random.
        given: the source network, if it is not to be trained.
    """

    def __init__(
        self, recipe: AdaptRecipe, domains: Domains, trials: Trials, seed: int, given: Given | None = None
    ) -> None:
        self.given = given
        self.recipe, self.domains, self.trials, self.seed = recipe, domains, trials, seed
        self._adapted: dict[str, Adapted] = {}

    def result(self, mode: str) -> dict[str, Any]:
        """The figures of a mode: "target" and "source" accuracy (or None), unlabelled scores, "regret"."""
        found: dict[str, Any] = self.trials.result(self.name_of(mode), lambda: self._measure(mode))
        return found

    def adapted(self, mode: str) -> Adapted:
        """The networks of a mode."""
        if mode not in self._adapted:
            self._adapted[mode] = self._make(mode)
        return self._adapted[mode]

    def name_of(self, mode: str) -> str:
        """The mode's name in the folder of the trials."""
        return f"{mode}-seed{self.seed}"

    def _measure(self, mode: str) -> dict[str, Any]:
        made, domains = self.adapted(mode), self.domains

        def score(extractor: CompatExtractor | None, test: Images | None) -> float | None:
            return None if extractor is None or test is None else pair_accuracy(extractor, made.head, test)

        return {
            "target": score(made.extractor, domains.target_test),
            "source": score(made.source_extractor, domains.source_test),
            **unlabelled_scores(made.extractor, made.head, domains.target),
            "regret": self._regret(made),
        }

    def _regret(self, made: Adapted) -> float | None:
        return regret(made.candidates, self.recipe.select) if made.candidates else None

    def _make(self, mode: str) -> Adapted:
        if mode == "source_only" and self.given is not None:
            extractor, head = self.given.copies()
            return Adapted(extractor, head, extractor)
        if mode == "source_only":
            return self._alone(mode, self.domains.source)
        if mode == "target_supervised":
            return replace(self._alone(mode, self.domains.target_labelled()), source_extractor=None)
        if mode == "batchnorm":
            source, size = self.adapted("source_only"), self.recipe.training.batch_size
            extractor = with_statistics_of(source.extractor, self.domains.target, size, self.seed)
            return Adapted(extractor, source.head)
        if mode == "pseudo_labels":
            return self._pseudo_labels(mode)
        return self._together(mode)

    def _alone(self, mode: str, images: Images) -> Adapted:
        """One network on labelled images of one domain; its features define the coordinates of its space."""
        space = CompatSpace(self.recipe.feature_dim, seed=self.seed)
        extractor, head = self._new(space, mode), TaskHead(space, images.class_names)
        self._train(mode, space, [Member(mode, extractor, head, images)], self._config(alignment="none"))
        space.finalize(reference=extractor.digest())
        return Adapted(extractor, head, extractor)

    def _together(self, mode: str) -> Adapted:
        """Source labels, and the self-supervised tasks on the images of both domains."""
        kind, _, warm = mode.partition("_")
        source, head = self._trained_pair() if warm else self._new_pair(kind == "separate")
        target = tied_copy(source) if kind == "shared" else copy.deepcopy(source)
        members = [
            Member(SOURCE, source, head, self.domains.source),
            Member(TARGET, target, None, self.domains.target),
        ]
        refinement = self.recipe.refinement
        changes = {"epochs": refinement.epochs, "lr": refinement.lr} if warm else {}
        watch = Watch(target, head, self.domains.target, self.domains.target_test)
        metric = None if self.recipe.select == LAST else self.recipe.select
        history = self._train(mode, head.space, members, self._config(best_metric=metric, **changes), validate=watch)
        return Adapted(target, head, source, history)

    def _new_pair(self, same_start: bool) -> tuple[CompatExtractor, TaskHead]:
        methods = (*self.recipe.tasks, *(("initial_weights",) if same_start else ()))
        space = CompatSpace(self.recipe.feature_dim, methods=methods, seed=self.seed)
        return self._new(space, SOURCE), TaskHead(space, self.domains.class_names)

    def _trained_pair(self) -> tuple[CompatExtractor, TaskHead]:
        """Copies of the source network's parts, in a space that shares the self-supervised tasks."""
        trained = self.adapted("source_only")
        form = trained.extractor.space
        space = CompatSpace(
            form.feature_dim, methods=self.recipe.tasks, normalization=form.normalization, seed=self.seed
        )
        return pair_in(space, trained.extractor, trained.head)

    def _pseudo_labels(self, mode: str) -> Adapted:
        """Train the target extractor under the frozen source head on what it is surest of, round after round."""
        start = self.adapted(self.start_of_pseudo_labels())
        extractor, head = copy.deepcopy(start.extractor), copy.deepcopy(start.head).requires_grad_(False)
        refinement, rounds = self.recipe.refinement, list[tuple[dict[str, float], CompatExtractor]]()
        config = self._config(alignment="none", epochs=refinement.round_epochs, lr=refinement.lr)
        watch = Watch(extractor, head, self.domains.target, self.domains.target_test)
        for number, share in enumerate(_shares(refinement.first_share, refinement.rounds), 1):
            believed = self._believed(extractor, head, share)
            self._train(f"{mode}-round{number}", extractor.space, [Member(TARGET, extractor, head, believed)], config)
            rounds.append((watch(), copy.deepcopy(extractor)))
        candidates = [scores for scores, _ in rounds]
        return Adapted(rounds[choose(candidates, self.recipe.select)][1], head, None, candidates)

    def start_of_pseudo_labels(self) -> str:
        """The chosen mode among those that are run, "batchnorm" if none of them is."""
        names = [mode for mode in self.recipe.chosen_modes if mode in LEARNT] or ["batchnorm"]
        return names[choose([self.result(name) for name in names], self.recipe.select)]

    def _believed(self, extractor: CompatExtractor, head: TaskHead, share: float) -> Images:
        features, probabilities = opinion(extractor, head, self.domains.target)
        labels, margins = centre_labels(features, probabilities)
        return self.domains.target.with_labels(labels, head.class_names).subset(surest(labels, margins, share))

    def _new(self, space: CompatSpace, name: str) -> CompatExtractor:
        return new_extractor(self.recipe, space, self.domains.in_chans, self.seed, name)

    def _config(self, **changes: Any) -> TrainConfig:
        return replace(self.recipe.training, seed=self.seed, **changes)

    def _train(
        self, name: str, space: CompatSpace, members: list[Member], config: TrainConfig, **options: Any
    ) -> tuple[dict[str, float], ...]:
        return self.trials.train(self.name_of(name), space, members, config, **options).history


def _shares(first: float, rounds: int) -> list[float]:
    """Growing evenly from the first share to all; all at once in a single round."""
    return [first + (1 - first) * number / (rounds - 1) for number in range(rounds)] if rounds > 1 else [1.0]
