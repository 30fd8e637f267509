"""The images that a recipe names."""

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.sources import load_dataset
from timm_compat.errors import CompatError
from timm_compat.recipes.schema import DataRecipe
from timm_compat.training.members import Images


def read_images(
    what: str, data: DataRecipe, seed: int, *, in_chans: int | None = None, pretrained: bool = False
) -> Images:
    """Load what a recipe names.

    Args:
        what: whose images they are, for messages.
        data: the data set and the part of it that is taken.
        seed: of that part, where ``data`` has none.
        in_chans: channels that the backbone asks for; as the data set has them if None.
        pretrained: whether the backbone has timm's weights, which mean colours.

    Raises:
        CompatError: as the data set's source raises it, with ``what`` before it.
    """
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
    if pretrained and isinstance(dataset, ArrayDataset) and in_chans is None:
        dataset = dataset.with_channels(3)
    return dataset
