"""What a transfer-learning recipe says: networks, a target task, and which of three questions are asked of it."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, field
from typing import Annotated

from pydantic import Field

from timm_compat.config import TrainConfig
from timm_compat.recipes.schema import DataRecipe, Recipe, mistakes_of_weights
from timm_compat.recipes.trials import TrialsRecipe, decided
from timm_compat.recipes.values import Arguments, Name, Side, Text, Training, recipe, repeated


@recipe
class TargetRecipe:
    """The task to be learned.

    Attributes:
        train: labelled images to learn from.
        test: labelled images of the same classes that measure it.
    """

    train: DataRecipe
    test: DataRecipe


@recipe
class SplitRecipe:
    """A pretrained network as it came (``tc.split``): its own features are those of a space, which others join.

    Attributes:
        name: by which the sections of the recipe call it.
        backbone: name of a timm model.
        pretrained: whether to load timm's weights.
        weights: a safetensors checkpoint of the plain timm model.
        img_size: H = W, or (H, W), of the images; the backbone's own if None.
        arguments: timm's own keywords.

    Raises:
        ConfigError: a value out of range, or not exactly one of ``pretrained`` and ``weights``.
    """

    name: Name
    backbone: Text
    pretrained: bool = False
    weights: Text | None = None
    img_size: Side | None = None
    arguments: Arguments = field(default_factory=dict)

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        yield from mistakes_of_weights(self.weights, self.pretrained)
        if self.weights is None and not self.pretrained:
            yield "pretrained: expected true, or weights, as the backbone stays as it is; got neither"


@recipe
class JoinedRecipe(SplitRecipe):
    """A backbone that joins the space of another network (``tc.join``), on the target's training images, unlabelled,
    and through the classes of its own classifier where that space has classes.

    Attributes:
        name: by which the sections of the recipe call it.
        backbone: name of a timm model.
        reference: the name of a source or of a split network, or the folder or Hub id of an extractor.
        pretrained: whether to load timm's weights.
        weights: a safetensors checkpoint of the plain timm model.
        img_size: H = W, or (H, W), of the images; the backbone's own if None.
        arguments: timm's own keywords.

    Raises:
        ConfigError: a value out of range, or not exactly one of ``pretrained`` and ``weights``.
    """

    _: KW_ONLY
    reference: Text


@recipe
class StartRecipe:
    """Where the training of a whole network starts: from nothing, with a new head, or with a compatible head.

    Networks are called by their names among the sources, or by the folder or Hub id of a component.

    Attributes:
        extractor: what is trained.
        head: trained on another extractor of the same space. Target classes that it does not know start at zero.
        scratch: whether the start from nothing is measured too.
        levels: accuracies, the steps to which are reported besides those to the usual way's end.

    Raises:
        ConfigError: a level outside (0, 1).
    """

    extractor: Text
    head: Text
    scratch: bool = True
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()


@recipe
class CheapHeadRecipe:
    """A head is trained on a cheap extractor and runs on an expensive one of the same space.

    Attributes:
        cheap: its features are what the head learns on.
        expensive: what the head is to run on.

    Raises:
        ConfigError: one network for both.
    """

    cheap: Text
    expensive: Text

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        if self.cheap == self.expensive:
            yield f"expensive: expected another network than the cheap one, got {self.cheap!r} for both"


@recipe
class AdaptersRecipe:
    """The whole network is trained, or an adapter on the frozen backbone, or the head alone.

    Attributes:
        extractor: where all of them start.
    """

    extractor: Text


@recipe
class FinetuneRecipe(TrialsRecipe):
    """A target task, the networks that help with it, and what is asked: at least one of three sections.

    Attributes:
        target: the task.
        source: networks that are trained here, in one space, before the target is looked at; none if None.
        split: pretrained networks as they came, each with a space of its own.
        joined: backbones that join the space of a source or of a split network.
        start: a compatible start beside the usual one.
        cheap_head: a head from a cheap extractor on an expensive one.
        adapters: adapters on a frozen backbone beside the training of the whole network.
        training: of whole networks on the target.
        frozen_training: of heads and adapters on frozen backbones. Without augmentation the backbone sees every image
            once.

    Raises:
        ConfigError: no section, a name that stands for two networks, or a setting that the trials decide.
    """

    target: TargetRecipe
    source: Recipe | None = None
    split: tuple[SplitRecipe, ...] = ()
    joined: tuple[JoinedRecipe, ...] = ()
    start: StartRecipe | None = None
    cheap_head: CheapHeadRecipe | None = None
    adapters: AdaptersRecipe | None = None
    frozen_training: Training = field(default_factory=lambda: TrainConfig(epochs=30))

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        yield from super().mistakes()
        if self.start is None and self.cheap_head is None and self.adapters is None:
            yield "start: expected at least one of start, cheap_head and adapters, got none"
        members = () if self.source is None else self.source.members
        yield from repeated("split", self.split, members)
        yield from repeated("joined", self.joined, (*members, *self.split))
        yield from decided("frozen_training", self.frozen_training)
        if self.source is not None:
            yield from decided("source.training", self.source.training)
