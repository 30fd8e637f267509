"""What a recombined pair is held against."""

import numpy as np
from numpy.typing import NDArray

from timm_compat.data.arrays import ArrayDataset
from timm_compat.evaluation.scores import accuracy
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.features import extract_features


def retrained_head_accuracy(extractor: CompatExtractor, train: ArrayDataset, test: ArrayDataset) -> float:
    """Accuracy in [0, 1] of a head trained anew, with labels, on a frozen extractor: the ceiling of a recombination.

    The head is scikit-learn's logistic regression on the features (N, D). Unlike a compatible head it needs labelled
    images and a training run for every pair.

    Args:
        extractor: of a level "pooled" space.
        train: labelled images for the new head.
        test: labelled images with the same classes.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=2000).fit(_arrays(extractor, train), train.labels.numpy())
    return accuracy(fitted.predict(_arrays(extractor, test)), test.labels.numpy())


def _arrays(extractor: CompatExtractor, dataset: ArrayDataset) -> NDArray[np.float32]:
    features: NDArray[np.float32] = extract_features(extractor, dataset).cpu().numpy()
    return features
