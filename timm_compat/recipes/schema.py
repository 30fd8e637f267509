"""The keys of a recipe: a space, its members with their data, and how they are trained.

Types refuse wrong values of single keys. Contradictions between keys are reported by ``mistakes``: each line starts
with the key that it is about, so that the reader can name the key's line in the file.
"""

import re
from collections.abc import Iterator
from dataclasses import field, fields
from typing import Annotated

from pydantic import AfterValidator, Field

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError
from timm_compat.methods.registry import method_names
from timm_compat.recipes.values import (
    Arguments,
    Count,
    Name,
    Names,
    OneOf,
    Renaming,
    Side,
    Text,
    Training,
    recipe,
    repeated,
    unique,
)
from timm_compat.space import LEVELS, MAX_FEATURE_DIM, NORMALIZATIONS

TRAINABLE = ("full", "adapter", "frozen")
ROOTED_DATASETS = ("folder", "images", "npz")
METRICS = ("native", "recombined")  # what a recipe's run measures


@recipe
class SpaceRecipe:
    """The space of all members: a new one, or an existing one by its folder.

    Attributes:
        feature_dim: number D of features.
        class_names: ordered vocabulary; if empty, and a method needs one, the classes that at least two members have
            in common, or all of a single member's.
        methods: what the space shares, the names of methods.
        level: "pooled" or "map".
        normalization: the interface's last step: "batch", "layer" or "none".
        seed: of the auxiliary heads; the training's if None.
        folder: folder or Hub id of an existing, final space; it determines all of the above; leave those out.

    Raises:
        ConfigError: a value out of range, or ``folder`` together with a field that it decides.
    """

    feature_dim: Annotated[int, Field(ge=1, le=MAX_FEATURE_DIM)] = 128
    class_names: Names = ()
    methods: Annotated[tuple[Annotated[str, OneOf(method_names)], ...], AfterValidator(unique)] = ("common_classes",)
    level: Annotated[str, OneOf(LEVELS)] = "pooled"
    normalization: Annotated[str, OneOf(NORMALIZATIONS)] = "batch"
    seed: int | None = None
    folder: Text | None = None

    def mistakes(self) -> Iterator[str]:
        """Contradictions between keys."""
        # Compared to the defaults, so that a recipe written out in full, with the folder, can be read again.
        given = [key.name for key in fields(self) if key.name != "folder" and getattr(self, key.name) != key.default]
        if self.folder is not None and given:
            yield f"folder: an existing space decides {', '.join(given)} itself; drop that, or folder"


def mistakes_of_weights(weights: str | None, pretrained: bool) -> Iterator[str]:
    """Of a backbone that says twice where its weights come from."""
    if weights is not None and pretrained:
        yield "weights: expected a checkpoint or pretrained: true, got both; drop one"


def _part(text: str) -> str:
    found = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?/([0-9]{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2] or found[1]) <= int(found[3]):
        raise ConfigError(f"expected one of n parts, such as '1/2', got {text!r}; '1-4/5' are several")
    return text


@recipe
class DataRecipe:
    """A data set, and the part of it to use.

    Attributes:
        dataset: "digits", "folder", "images" (without labels), "npz", a data set of torchvision by name, or with a
            prefix, such as "hfds/...".
        root: folder or file where the images are.
        split: part of the data set as it names it.
        classes: names of the classes to use, in this order; all if empty.
        part: one of n disjoint random parts of equal size, such as "1/2", or some of them, such as "1-4/5".
        limit: maximum number of images.
        seed: of ``part`` and ``limit``; the training's if None.
        skip_corrupt: whether images that cannot be decoded are left out; otherwise they are an error.
        rename: new names of classes by old ones, such as ``{automobile: car}``; ``classes`` go by the new ones.

    Raises:
        ConfigError: a value out of range, or no root where the data set needs one.
    """

    dataset: Text
    root: Text | None = None
    split: Text = "train"
    classes: Names = ()
    part: Annotated[str, AfterValidator(_part)] | None = None
    limit: Count | None = None
    seed: int | None = None
    skip_corrupt: bool = False
    rename: Renaming = field(default_factory=dict)

    def mistakes(self) -> Iterator[str]:
        """Contradictions between keys."""
        if self.dataset in ROOTED_DATASETS and self.root is None:
            yield f"root: expected a path, as dataset {self.dataset!r} is read from there, got none"


@recipe
class HeadRecipe:
    """A task head.

    Attributes:
        depth: 1 for a linear head.
        hidden_dim: width of the further layers; D if None.
        drop_rate: dropout before the classifier, in training.
        class_names: in the order of the logits; those of the member's data if empty.

    Raises:
        ConfigError: a value out of range.
    """

    depth: Count = 1
    hidden_dim: Count | None = None
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_names: Names = ()


@recipe
class MemberRecipe:
    """One network: a backbone, its training data, and its head.

    Attributes:
        name: of the member in logs and files; an identifier.
        backbone: name of a timm model.
        data: training images.
        test: images to test it on; none if None.
        validation: images to measure it on after every epoch, by which ``training.best_metric`` chooses the epoch; they
            must be others than the test images. A part of the training images serves: ``data: {..., part: 1-4/5}``
            and ``validation: {..., part: 5/5}``.
        head: its task head.
        labelled: whether it learns from labels; otherwise it has no head, and labels are not used.
        pretrained: whether to load timm's weights.
        weights: a safetensors checkpoint of the plain timm model.
        trainable: "full", or "adapter": the backbone is frozen.
        img_size: H = W, or (H, W), of the images; the backbone's own if None.
        crop_pct: share of an image's side that the backbone sees; as ``create_extractor`` chooses it if None.
        out_index: at level "map" the stage to read.
        arguments: timm's own keywords, such as ``in_chans``; their values are strings, numbers, booleans, None, or
            lists of these (a tuple becomes a list).

    Raises:
        ConfigError: a value out of range, ``weights`` together with ``pretrained``, an argument that has a key of its
            own, or a test, a validation or a head of a member without labels.
    """

    name: Name
    backbone: Text
    data: DataRecipe
    test: DataRecipe | None = None
    validation: DataRecipe | None = None
    head: HeadRecipe = field(default_factory=HeadRecipe)
    labelled: bool = True
    pretrained: bool = False
    weights: Text | None = None
    trainable: Annotated[str, OneOf(TRAINABLE)] = "full"
    img_size: Side | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    out_index: int = -1
    arguments: Arguments = field(default_factory=dict)

    def mistakes(self) -> Iterator[str]:
        """Contradictions between keys."""
        yield from mistakes_of_weights(self.weights, self.pretrained)
        if self.labelled:
            return
        for key in ("test", "validation"):
            if getattr(self, key) is not None:
                yield f"{key}: a member without labels has no head that could be tested; drop it, or label it"
        if self.head != HeadRecipe():
            yield "head: a member without labels has no head; drop it, or set labelled: true"


@recipe
class ReferenceRecipe:
    """Existing components whose features the new ones should match.

    Attributes:
        extractor: folder or Hub id of the extractor.
        head: folder or Hub id of its head.

    Raises:
        ConfigError: an empty path.
    """

    extractor: Text
    head: Text | None = None


@recipe
class Recipe:
    """A whole training run. Paths are kept as strings, so that a recipe equals the one read back from its text.

    Attributes:
        space: where all members live.
        members: the networks, at least one.
        training: how they are trained.
        reference: existing components to match, for alignment, influence and distillation.
        pool: unlabelled images for alignment.
        evaluate: whether the matrix of all members' extractors and heads is measured afterwards.

    Raises:
        ConfigError: no member, two of one name, or settings that contradict each other.
    """

    space: SpaceRecipe
    members: tuple[MemberRecipe, ...]
    training: Training = field(default_factory=TrainConfig)
    reference: ReferenceRecipe | None = None
    pool: DataRecipe | None = None
    evaluate: bool = True

    def mistakes(self) -> Iterator[str]:
        """Contradictions between keys."""
        if not self.members:
            yield "members: expected at least one, got none"
        yield from repeated("members", self.members)
        yield from self._mistakes_of_reference()
        yield from self._mistakes_of_metric()

    def _mistakes_of_metric(self) -> Iterator[str]:
        metric = self.training.best_metric
        if metric is not None and metric not in METRICS:
            yield f"training.best_metric: expected one of {', '.join(METRICS)}, got {metric!r}"
        # Chosen by the test images, an epoch would score better on them than on any others.
        lacking = [place for place, one in enumerate(self.members) if one.labelled and one.validation is None]
        if metric in METRICS and lacking:
            yield (
                f"training.best_metric: needs {', '.join(f'members.{place}.validation' for place in lacking)}, images "
                "to choose the epoch by, which are no test images, got none; give another split, or take a part of the "
                "training images: data: {..., part: 1-4/5} and validation: {..., part: 5/5}"
            )

    def _mistakes_of_reference(self) -> Iterator[str]:
        factors = [name for name in ("influence_weight", "distillation_weight") if getattr(self.training, name)]
        if not factors and self.training.alignment == "none":
            for key in ("reference", "pool"):
                if getattr(self, key) is not None:
                    yield (
                        f"{key}: nothing uses it; set training.alignment, training.influence_weight or "
                        "training.distillation_weight, or drop it"
                    )
        if factors and (self.reference is None or self.reference.head is None):
            yield f"training.{factors[0]}: needs the head of the reference, got none; give reference.head, or drop it"
