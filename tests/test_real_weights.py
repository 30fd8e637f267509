"""The pretrained path on real ImageNet weights and photographs, where the environment says where they are.

``TIMM_COMPAT_WEIGHTS`` names a folder with the safetensors files of tf_efficientnet_lite0, lite1 and lite2,
``TIMM_COMPAT_PHOTOS`` one with caltech101/train/CLASS and caltech101/test/CLASS.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import LoopbackHub
from hub_store import Repo

import timm_compat as tc

WEIGHTS, PHOTOS = (os.environ.get(f"TIMM_COMPAT_{name}") for name in ("WEIGHTS", "PHOTOS"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not WEIGHTS, reason="TIMM_COMPAT_WEIGHTS is not set"),
]


def weights(name: str) -> Path:
    return Path(WEIGHTS or "") / f"tf_efficientnet_{name}.safetensors"


def accuracy(extractor: tc.CompatExtractor, head: tc.TaskHead, test: tc.data.ImageDataset) -> float:
    return float(tc.recombination_matrix({"x": extractor}, {"x": head}, test).accuracy[0, 0])


@pytest.mark.skipif(not PHOTOS, reason="TIMM_COMPAT_PHOTOS is not set")
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
    lite0, own = tc.split("tf_efficientnet_lite0", weights=weights("lite0"))
    with torch.no_grad():
        one, other = (
            head(tc.extract_features(extractor, pool)).argmax(dim=1)
            for extractor, head in ((lite0, own), (reference, imagenet))
        )
    assert agreement.high > (one == other).float().mean()  # as often as the classifiers as they come: 0.64


def test_the_demo_shows_what_pretrained_networks_give_each_other(hub: LoopbackHub, tmp_path: Path) -> None:
    for name in ("lite0", "lite1"):
        repo_id = f"timm/tf_efficientnet_{name}.in1k"
        hub.store.repos[repo_id] = Repo(repo_id)
        hub.edit(repo_id, model__safetensors=weights(name).read_bytes())
    words = [sys.executable, "-m", "timm_compat", "demo", "--json", "--output", "out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pretrained"] is True
    assert found["native"] > 0.88  # measured: 0.906
    assert found["independent"] < 0.25  # 0.140
    assert found["joined_classes"] > found["independent"] + 0.1  # 0.327
    assert found["joined"] > found["native"] - 0.04  # 0.878
    assert found["ceiling"] > 0.9  # 0.935
    assert found["seconds"] > 0
