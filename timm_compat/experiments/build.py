"""From a recipe to the objects that it names: data sets, a space, members, a reference."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm.models import get_pretrained_cfg_value

from timm_compat.data.sources import load_dataset
from timm_compat.errors import CompatError, DataError
from timm_compat.evaluation.columns import matrix_of_columns
from timm_compat.evaluation.matrix import RecombinationMatrix
from timm_compat.methods.registry import methods_of
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.weights import load_weights
from timm_compat.recipes.reader import read_recipe as read_recipe
from timm_compat.recipes.schema import DataRecipe, MemberRecipe, Recipe, SpaceRecipe
from timm_compat.seeding import seeded
from timm_compat.space import CompatSpace
from timm_compat.training.members import Images, Member, Reference


@dataclass(frozen=True)
class Built:
    """What a recipe names, ready to be trained.

    Attributes:
        recipe: with every choice that it left open made.
        space: new or loaded.
        members: in the recipe's order.
        tests: labelled images by member's name, where the recipe has them.
        validations: likewise, those that choose the epoch.
        reference: loaded, or None.
        pool: images for the alignment, or None.
    """

    recipe: Recipe
    space: CompatSpace
    members: tuple[Member, ...]
    tests: dict[str, Images]
    validations: dict[str, Images]
    reference: Reference | None
    pool: Images | None

    def matrix(self, images: Mapping[str, Images]) -> RecombinationMatrix | None:
        """Every member's extractor under every head, each head on its own member's images; None without any."""
        extractors = {member.name: member.extractor for member in self.members}
        heads = {
            member.name: member.head for member in self.members if member.head is not None and member.name in images
        }
        return matrix_of_columns(extractors, heads, images) if heads else None

    def validate(self) -> dict[str, float]:
        """Accuracies on the validation images, by which ``training.best_metric`` chooses; empty without any."""
        matrix = self.matrix(self.validations)
        return {} if matrix is None else {"native": matrix.native_accuracy, "recombined": matrix.recombined_accuracy}


def build(recipe: Recipe) -> Built:
    """Load the data, and make or load the parts.

    Raises:
        CompatError: any of ours, as the parts raise them; names the member where one is at fault.
    """
    config = recipe.training
    datasets, tests, validations = (_images(use, recipe) for use in ("data", "test", "validation"))
    _check_apart(validations, {"test": tests, "data": datasets})
    labelled = [datasets[member.name] for member in recipe.members if member.labelled]
    recipe = replace(recipe, space=with_common_classes(recipe.space, labelled))
    space = build_space(recipe.space, config.seed)
    members = tuple(build_member(member, space, datasets[member.name], config.seed) for member in recipe.members)
    reference = None
    if recipe.reference is not None:
        old, folder = CompatExtractor.from_pretrained(recipe.reference.extractor), recipe.reference.head
        reference = Reference(old, None if folder is None else TaskHead.from_pretrained(folder))
    pool = None if recipe.pool is None else read_images("pool", recipe.pool, config.seed, recipe.members[0])
    return Built(recipe, space, members, tests, validations, reference, pool)


def _images(use: str, recipe: Recipe) -> dict[str, Images]:
    found = {}
    for member in recipe.members:
        if (data := getattr(member, use)) is not None:
            what = f"member {member.name!r}" if use == "data" else f"{use} of member {member.name!r}"
            found[member.name] = read_images(what, data, recipe.training.seed, member)
    return found


def _check_apart(validations: Mapping[str, Images], others: Mapping[str, Mapping[str, Images]]) -> None:
    digests = {name: dataset.digest() for name, dataset in validations.items()}
    for use, datasets in others.items() if digests else ():
        for name in digests.keys() & datasets.keys():
            if datasets[name].digest() == digests[name]:
                raise DataError(f"validation of member {name!r}: expected other images than its {use}, got the same")


def read_images(what: str, data: DataRecipe, seed: int, member: MemberRecipe | None = None) -> Images:
    """Load what a recipe names.

    Args:
        what: whose images they are, for messages.
        data: the data set and the part of it that is taken.
        seed: of that part, where ``data`` has none.
        member: that sees them: the channels that its backbone asks for, and colours if that has timm's weights.

    Raises:
        CompatError: as the data set's source raises it, with ``what`` before it.
    """
    in_chans = None if member is None else member.arguments.get("in_chans")
    try:
        dataset: Images = load_dataset(
            data.dataset,
            data.root,
            data.split,
            rename=data.rename,
            classes=data.classes or None,
            part=data.part,
            limit=data.limit,
            seed=seed if data.seed is None else data.seed,
            in_chans=in_chans,
            skip_corrupt=data.skip_corrupt,
        )
    except CompatError as error:
        raise type(error)(f"{what}: {error}") from error
    if member is not None and (member.pretrained or member.weights) and in_chans is None:
        dataset = dataset.with_channels(3)
    return dataset


def with_common_classes(space: SpaceRecipe, labelled: Sequence[Images]) -> SpaceRecipe:
    """The space with the vocabulary that its methods need, where it lists none.

    These are the classes that at least two of the labelled data sets have in common, or all of a single one's.

    Raises:
        DataError: a method needs common classes, and there are none.
    """
    wants = [method.name for method in methods_of(space.methods) if method.uses_classes]
    if space.folder is not None or not wants or space.class_names:
        return space
    counts = Counter(name for dataset in labelled for name in dataset.class_names)
    common = tuple(name for name, count in counts.items() if count > 1 or len(labelled) == 1)
    if not common:
        raise DataError(
            f"space.methods: {', '.join(sorted(wants))} needs classes that at least two members have in common, got "
            "none; give space.class_names, or use alignment or a self-supervised task such as rotation"
        )
    return replace(space, class_names=common)


def build_space(given: SpaceRecipe, seed: int) -> CompatSpace:
    """A new space, or the existing one that a recipe names; ``seed`` is that of auxiliary heads, if it has none."""
    if given.folder is not None:
        return CompatSpace.from_pretrained(given.folder)
    return CompatSpace(
        given.feature_dim,
        given.class_names,
        given.methods,
        level=given.level,
        normalization=given.normalization,
        seed=seed if given.seed is None else given.seed,
    )


def build_member(given: MemberRecipe, space: CompatSpace, dataset: Images, seed: int) -> Member:
    """A member of a space with its initial weights, which follow from seed and name."""
    arguments: dict[str, Any] = {"in_chans": dataset.channels, **given.arguments}
    with seeded(seed, "member", given.name):
        extractor = build_extractor(
            given.backbone,
            space,
            pretrained=given.pretrained,
            weights=given.weights,
            trainable=given.trainable,
            out_index=given.out_index,
            img_size=given.img_size,
            crop_pct=given.crop_pct,
            **arguments,
        )
        head = None
        if given.labelled:
            form = given.head
            names = form.class_names or dataset.class_names
            head = TaskHead(space, names, depth=form.depth, hidden_dim=form.hidden_dim, drop_rate=form.drop_rate)
    return Member(given.name, extractor, head, dataset)


def build_extractor(
    backbone: str, space: CompatSpace, *, weights: str | None = None, crop_pct: float | None = None, **options: Any
) -> CompatExtractor:
    """``create_extractor`` with the weights of a file, if any, which see the part of an image that timm says.

    Raises:
        BackboneError: as ``create_extractor`` raises it, or a file with other tensors.
    """
    if crop_pct is None and weights is not None:
        crop_pct = get_pretrained_cfg_value(backbone, "crop_pct")
    extractor = create_extractor(backbone, space, crop_pct=crop_pct, **options)
    if weights is not None:
        load_weights(extractor.backbone, weights)
    return extractor
