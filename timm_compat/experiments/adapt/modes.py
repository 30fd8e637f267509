"""The modes of one seed. Each is trained when it is first asked for; one starts from another."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from timm_compat.config import TrainConfig
from timm_compat.data.raw_batches import raw_batches
from timm_compat.data.transforms import evaluation_transform
from timm_compat.experiments.adapt.domains import Domains, Given
from timm_compat.experiments.adapt.recipe import LEARNT, AdaptRecipe
from timm_compat.experiments.adapt.selection import LAST, TARGET, Watch, choose, regret, unlabelled_scores
from timm_compat.experiments.build import build_extractor
from timm_compat.experiments.engine import Experiment
from timm_compat.experiments.frozen import with_own_features
from timm_compat.experiments.networks import copied_pair
from timm_compat.methods.pseudo_labels import centre_labels, most_confident
from timm_compat.models.batch_statistics import measure_statistics
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import prepare
from timm_compat.seeding import generator, seeded
from timm_compat.space import CompatSpace
from timm_compat.training.members import Images, Member

SOURCE = "source"


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
    """All modes of one seed; ``given`` is the source network, if it is not to be trained."""

    def __init__(
        self, recipe: AdaptRecipe, domains: Domains, experiment: Experiment, seed: int, given: Given | None = None
    ) -> None:
        self.recipe, self.domains, self.experiment, self.seed, self.given = recipe, domains, experiment, seed, given
        self.features, self.frozen = experiment.features, recipe.trainable == "adapter"
        self._adapted: dict[str, Adapted] = {}

    def result(self, mode: str) -> dict[str, Any]:
        """The figures of a mode: "target" and "source" accuracy (or None), unlabelled scores, "regret"."""
        found: dict[str, Any] = self.experiment.result(self._name_of(mode), lambda: self._measure(mode))
        return found

    def adapted(self, mode: str) -> Adapted:
        """The networks of a mode."""
        if mode not in self._adapted:
            self._adapted[mode] = self._make(mode)
        return self._adapted[mode]

    def _name_of(self, mode: str) -> str:
        return f"{mode}-seed{self.seed}"

    def _measure(self, mode: str) -> dict[str, Any]:
        made, domains = self.adapted(mode), self.domains

        def score(extractor: CompatExtractor | None, test: Images | None) -> float | None:
            return None if extractor is None or test is None else self.features.accuracy(extractor, made.head, test)

        return {
            "target": score(made.extractor, domains.target_test),
            "source": score(made.source_extractor, domains.source_test),
            **unlabelled_scores(self.features.logits(made.extractor, made.head, domains.target).softmax(dim=1)),
            "regret": regret(made.candidates, self.recipe.select) if made.candidates else None,
        }

    def _make(self, mode: str) -> Adapted:
        if mode == "source_only" and self.given is not None:
            extractor, head = self.given.copies(self.recipe.trainable)
            return Adapted(extractor, head, extractor)
        if mode == "source_only":
            return self._alone(mode, self.domains.source)
        if mode == "target_supervised":
            return replace(self._alone(mode, self.domains.target_labelled()), source_extractor=None)
        if mode in ("normalized", "batchnorm"):
            return self._normalized(whole=mode == "batchnorm")
        if mode == "pseudo_labels":
            return self._pseudo_labels(mode)
        return self._together(mode)

    def _alone(self, mode: str, images: Images) -> Adapted:
        """One network on labelled images of one domain; its features define the coordinates of its space."""
        if self.frozen:
            return self._probed(images)
        space = CompatSpace(self.recipe.feature_dim, seed=self.seed)
        extractor, head = self._new(space, mode), TaskHead(space, images.class_names)
        member, config = Member(mode, extractor, head, images), self._config(alignment="none")
        self.experiment.train_alone(self._name_of(mode), member, config)
        return Adapted(extractor, head, extractor)

    def _probed(self, images: Images) -> Adapted:
        """A head on the features of the backbone as it came, standardised over the same images."""
        extractor = with_own_features(self._new(CompatSpace(self.recipe.feature_dim), SOURCE))
        self.features.standardize(extractor, images)
        extractor.space.finalize(reference=extractor.digest())
        return Adapted(extractor, self.features.probe(extractor, images, self.seed), extractor)

    def _normalized(self, whole: bool) -> Adapted:
        """The source network with statistics of target images: of the backbone and the features, or these alone."""
        source, size = self.adapted("source_only"), self.recipe.training.batch_size
        extractor = copy.deepcopy(source.extractor)
        if whole:
            extractor = with_statistics_of(extractor, self.domains.target, size, self.seed)
        if self.frozen and extractor.space.normalization == "batch":
            self.features.standardize(extractor, self.domains.target)
        return Adapted(extractor, source.head)

    def _together(self, mode: str) -> Adapted:
        """Source labels, and the self-supervised tasks on the images of both domains."""
        kind, _, warm = mode.partition("_")
        source, head = self._trained_pair() if warm else self._new_pair(kind == "separate")
        target = tied_copy(source) if kind == "shared" else copy.deepcopy(source)
        members = [Member(SOURCE, source, head, self.domains.source), Member(TARGET, target, None, self.domains.target)]
        refinement = self.recipe.refinement
        changes = {"epochs": refinement.epochs, "lr": refinement.lr} if warm else {}
        watch = Watch(target, head, self.domains.target, self.domains.target_test, self.features)
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
        return copied_pair(trained.extractor, trained.head, space, self.recipe.trainable)

    def _pseudo_labels(self, mode: str) -> Adapted:
        """Train the target extractor on what it is most confident of, under the frozen source head, in rounds."""
        start = self.adapted(self._start_of_pseudo_labels())
        extractor, head = copy.deepcopy(start.extractor), copy.deepcopy(start.head).requires_grad_(False)
        refinement, rounds = self.recipe.refinement, list[tuple[dict[str, float], CompatExtractor]]()
        config = self._config(alignment="none", epochs=refinement.round_epochs, lr=refinement.lr)
        watch = Watch(extractor, head, self.domains.target, self.domains.target_test, self.features)
        for number, share in enumerate(_shares(refinement.first_share, refinement.rounds), 1):
            believed = self._believed(extractor, head, share)
            self._train(f"{mode}-round{number}", extractor.space, [Member(TARGET, extractor, head, believed)], config)
            rounds.append((watch(), copy.deepcopy(extractor)))
        candidates = [scores for scores, _ in rounds]
        return Adapted(rounds[choose(candidates, self.recipe.select)][1], head, None, candidates)

    def _start_of_pseudo_labels(self) -> str:
        """The chosen mode among those that are run, "batchnorm" if none of them is."""
        names = [mode for mode in self.recipe.chosen_modes if mode in LEARNT] or ["batchnorm"]
        return names[choose([self.result(name) for name in names], self.recipe.select)]

    def _believed(self, extractor: CompatExtractor, head: TaskHead, share: float) -> Images:
        probabilities = self.features.logits(extractor, head, self.domains.target).softmax(dim=1)
        labels, margins = centre_labels(self.features.of(extractor, self.domains.target), probabilities)
        return self.domains.target.with_labels(labels, head.class_names).subset(most_confident(labels, margins, share))

    def _new(self, space: CompatSpace, name: str) -> CompatExtractor:
        recipe = self.recipe
        if self.frozen and self.given is not None:
            with seeded(self.seed, "adapt", name):
                return CompatExtractor(copy.deepcopy(self.given.extractor.backbone), space, recipe.trainable)
        options = {"in_chans": self.domains.in_chans, "img_size": recipe.img_size, **recipe.arguments}
        with seeded(self.seed, "adapt", name):
            return build_extractor(
                recipe.backbone,
                space,
                pretrained=recipe.pretrained,
                weights=recipe.weights,
                trainable=recipe.trainable,
                **options,
            )

    def _config(self, **changes: Any) -> TrainConfig:
        training = self.recipe.training
        folder = self.features.folder if self.frozen else training.cache_dir
        return replace(training, seed=self.seed, cache_dir=folder, **changes)

    def _train(
        self, name: str, space: CompatSpace, members: list[Member], config: TrainConfig, **options: Any
    ) -> tuple[dict[str, float], ...]:
        return self.experiment.train(self._name_of(name), space, members, config, **options).history


def _shares(first: float, rounds: int) -> list[float]:
    """Growing evenly from the first share to all; all at once in a single round."""
    return [first + (1 - first) * number / (rounds - 1) for number in range(rounds)] if rounds > 1 else [1.0]


def tied_copy(extractor: CompatExtractor) -> CompatExtractor:
    """A second extractor with the same weights, not copies of them, but BatchNorm statistics of its own.

    Trained together, the two are one network that normalises each domain by itself: Chang et al., CVPR 2019
    (https://arxiv.org/abs/1906.03950), with the affine parameters shared as well.
    """
    shared: dict[int, Any] = {id(parameter): parameter for parameter in extractor.parameters()}
    return copy.deepcopy(extractor, shared)


def with_statistics_of(extractor: CompatExtractor, images: Images, batch_size: int, seed: int) -> CompatExtractor:
    """A copy with BatchNorm statistics of these images."""
    adapted = copy.deepcopy(extractor)
    measure_statistics(adapted, _shuffled_batches(adapted, images, batch_size, seed))
    return adapted


def _shuffled_batches(extractor: CompatExtractor, images: Images, size: int, seed: int) -> Iterator[Tensor]:
    # Images sorted by class would make each batch's variance that of a class.
    order = torch.randperm(len(images), generator=generator(seed, "batch statistics"))
    if len(order) % size == 1:
        order = order[:-1]  # one image has no variance
    for batch in raw_batches(images.subset(order), size, [evaluation_transform(extractor.data_config)]):
        yield prepare(extractor, batch)
