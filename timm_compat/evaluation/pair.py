"""One extractor under one head."""

from timm_compat.evaluation.answers import Images
from timm_compat.evaluation.matrix import recombination_matrix
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead


def pair_accuracy(extractor: CompatExtractor, head: TaskHead, dataset: Images) -> float:
    """Accuracy in [0, 1] on the images of classes that the head knows.

    Raises:
        CompatError: as ``recombination_matrix`` does.
    """
    return float(recombination_matrix({"": extractor}, {"": head}, dataset).accuracy[0, 0])
