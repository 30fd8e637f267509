"""What a recipe of an adaptation says."""

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Annotated

from pydantic import AfterValidator, Field

from timm_compat.data.shifts import SHIFTS
from timm_compat.methods.registry import self_supervised_tasks
from timm_compat.recipes.schema import DataRecipe, mistakes_of_weights
from timm_compat.recipes.trials import TrialsRecipe
from timm_compat.recipes.values import Arguments, Count, OneOf, Text, recipe, unique
from timm_compat.space import MAX_FEATURE_DIM

# What each mode is, in the order of the table.
MODES: Mapping[str, str] = {
    "source_only": "the source network as it is",
    "normalized": "the source network, its features normalised by target images (frozen backbones)",
    "batchnorm": "the source network with BatchNorm statistics of target images",
    "separate": "two extractors from identical initial weights, shared self-supervised heads (the paper)",
    "shared": "one extractor with own BatchNorm statistics of each domain, self-supervised on both",
    "separate_warm": "as separate, from the trained source network",
    "shared_warm": "as shared, from the trained source network",
    "pseudo_labels": "the most informed of the above, then trained on its own most confident predictions",
    "target_supervised": "trained on the target's labels: the upper bound",
}
TOGETHER = ("separate", "shared", "separate_warm", "shared_warm")  # source and target are trained jointly
WARM = ("separate_warm", "shared_warm")
LEARNT = ("normalized", "batchnorm", *TOGETHER)  # what pseudo-labels can start from
CRITERIA = ("information", "confidence", "last")
UNLABELLED = "images"
TRAINABLE = ("full", "adapter")


def task_names() -> tuple[str, ...]:
    """The self-supervised tasks that are known now."""
    return tuple(task.name for task in self_supervised_tasks())


@recipe
class DomainRecipe:
    """The images of one domain.

    Attributes:
        train: images to learn from; the target's labels, if any, serve the upper bound alone.
        test: labelled images to measure on; nothing is measured in this domain if None.
        shift: changes made to all of these images on purpose, any of ``SHIFTS``, in this order.

    Raises:
        ConfigError: an unknown shift, or test images without labels.
    """

    train: DataRecipe
    test: DataRecipe | None = None
    shift: Annotated[tuple[Annotated[str, OneOf(SHIFTS)], ...], AfterValidator(unique)] = ()

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        if self.test is not None and self.test.dataset == UNLABELLED:
            yield "test: expected labelled images, got 'images'; drop it, and nothing is measured here"


@recipe
class RefinementRecipe:
    """How a trained network is adapted further.

    Attributes:
        lr: highest value.
        epochs: of a joint training that starts from the source network.
        rounds: times that the target images get new pseudo-labels.
        round_epochs: of the training after each.
        first_share: share of the images, class by class, whose labels the first round believes; the last believes all.

    Raises:
        ConfigError: a value out of range.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-3
    epochs: Count = 5
    rounds: Count = 4
    round_epochs: Count = 3
    first_share: Annotated[float, Field(gt=0, le=1)] = 0.5


@recipe
class AdaptRecipe(TrialsRecipe):
    """From labelled source images to unlabelled target images.

    Attributes:
        source: labelled.
        target: its ``train`` may be unlabelled ("images").
        backbone: name of a timm model.
        pretrained: whether it starts from timm's weights.
        weights: a safetensors checkpoint of the plain timm model.
        trainable: "full", or "adapter": a pretrained backbone stays as it is. The source network is then a linear probe
            on the backbone's own features, and what the target changes is BatchNorm's statistics and a linear map of
            the features. Every image passes a backbone once.
        img_size: side of the images as the backbone sees them; its own if None.
        arguments: timm's own keywords.
        feature_dim: number D of features of networks that are trained from the backbone.
        tasks: self-supervised ones that both domains share, any of "rotation", "location" and "flip" (Sun et al. 2019,
            https://arxiv.org/abs/1909.11825); at least one.
        modes: which of ``MODES``; all that the data allow if empty, but for the self-supervised on a frozen backbone.
        select: chooses epochs, rounds and the final mode, on unlabelled target images: "information" (mutual
            information of image and predicted class), "confidence" (least mean entropy), or "last" (the last epoch,
            the last round, the last mode).
        refinement: of the modes that start from a trained network.
        source_extractor: folder or Hub id of a trained extractor: the source network of the modes that start from one
            ("source_only", "batchnorm", "separate_warm", "shared_warm", "pseudo_labels"), which then is not trained.
            The other modes train new networks of ``backbone``. What comes out lives in a space of its own.
        source_head: folder or Hub id of its head; both or none.

    Raises:
        ConfigError: a value out of range, an unknown mode or task, one of ``source_extractor`` and ``source_head``
            without the other, or a mode that the recipe's data do not allow.
    """

    source: DomainRecipe
    target: DomainRecipe
    backbone: Text
    pretrained: bool = False
    weights: Text | None = None
    trainable: Annotated[str, OneOf(TRAINABLE)] = "full"
    img_size: Count | None = None
    arguments: Arguments = field(default_factory=dict)
    feature_dim: Annotated[int, Field(ge=1, le=MAX_FEATURE_DIM)] = 64
    tasks: Annotated[tuple[Annotated[str, OneOf(task_names)], ...], AfterValidator(unique)] = ("rotation",)
    modes: Annotated[tuple[Annotated[str, OneOf(MODES)], ...], AfterValidator(unique)] = ()
    select: Annotated[str, OneOf(CRITERIA)] = "information"
    refinement: RefinementRecipe = field(default_factory=RefinementRecipe)
    source_extractor: Text | None = None
    source_head: Text | None = None

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        yield from super().mistakes()
        yield from mistakes_of_weights(self.weights, self.pretrained)
        if self.trainable == "adapter":
            yield from self._mistakes_of_adapter()
        for key, other in (("source_extractor", "source_head"), ("source_head", "source_extractor")):
            if getattr(self, key) is None and getattr(self, other) is not None:
                yield f"{key}: expected one beside {other}, got none; give it, or drop {other}"
        if not self.tasks:
            yield f"tasks: expected at least one of {', '.join(task_names())}, got none"
        if self.source.train.dataset == UNLABELLED:
            yield "source: expected labelled images, got 'images'; name a labelled data set"
        if "normalized" in self.modes and self.trainable == "full":
            yield "modes: normalized needs trainable: adapter, as batchnorm does the same and more otherwise; drop it"
        if "target_supervised" in self.modes and self.target.train.dataset == UNLABELLED:
            yield "modes: target_supervised needs labels of the target, got 'images'; drop it"

    def _mistakes_of_adapter(self) -> Iterator[str]:
        if not self.pretrained and self.weights is None and self.source_extractor is None:
            yield "trainable: a backbone that stays as it is needs pretrained: true, or weights; got neither"
        if self.training.augments:
            yield "training: features are computed once, without augmentation; drop it, or set trainable: full"

    @property
    def chosen_modes(self) -> tuple[str, ...]:
        """The modes to run, in the order of the table."""
        frozen = self.trainable == "adapter"
        left_out = {"target_supervised": self.target.train.dataset == UNLABELLED, "normalized": not frozen}
        # Self-supervision teaches a backbone, and this one stays as it is: run where asked for by name.
        left_out |= dict.fromkeys(TOGETHER, frozen and not self.modes)
        possible = [mode for mode in MODES if not left_out.get(mode, False)]
        return tuple(mode for mode in possible if not self.modes or mode in self.modes)
