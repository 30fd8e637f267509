"""The pretrained path on real ImageNet weights and photographs, where the environment says where they are.

``TIMM_COMPAT_WEIGHTS`` names a folder with tf_efficientnet_lite0.safetensors and tf_efficientnet_lite2.safetensors,
``TIMM_COMPAT_PHOTOS`` one with caltech101/train/CLASS and caltech101/test/CLASS.
"""

import os
from pathlib import Path

import pytest

import timm_compat as tc

WEIGHTS, PHOTOS = (os.environ.get(f"TIMM_COMPAT_{name}") for name in ("WEIGHTS", "PHOTOS"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (WEIGHTS and PHOTOS), reason="TIMM_COMPAT_WEIGHTS and TIMM_COMPAT_PHOTOS are not set"),
]


def weights(name: str) -> Path:
    return Path(WEIGHTS or "") / f"tf_efficientnet_{name}.safetensors"


def accuracy(extractor: tc.CompatExtractor, head: tc.TaskHead, test: tc.data.ImageDataset) -> float:
    return float(tc.recombination_matrix({"x": extractor}, {"x": head}, test).accuracy[0, 0])


def test_a_head_of_one_network_runs_on_another_without_any_image_of_its_kind() -> None:
    train, test = (
        tc.data.load_dataset("folder", Path(PHOTOS or "") / "caltech101", split) for split in ("train", "test")
    )
    reference, imagenet = tc.split("tf_efficientnet_lite2", weights=weights("lite2"))
    head = tc.linear_probe(reference, train)
    joined = tc.join(reference.space, "tf_efficientnet_lite0", weights=weights("lite0"))
    assert joined.fit_report.num_common_classes == 1000
    retrained = tc.linear_probe(joined, train)
    best = accuracy(joined, retrained, test)
    without = accuracy(joined, head, test)
    assert without > 0.94 * best  # measured: 0.95 to 0.96

    pool = train.subset(range(0, len(train), len(train) // 300))
    better = tc.join(
        reference.space, "tf_efficientnet_lite0", pool,
        reference=reference, heads=[head, imagenet], weights=weights("lite0"),
    )  # fmt: skip
    assert accuracy(better, head, test) > 0.96 * best  # measured: 0.97 to 0.98
    agreement = better.fit_report.agreements["the head over tench, goldfish and 998 more"]
    assert agreement.high > 0.85
