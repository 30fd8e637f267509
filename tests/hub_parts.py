"""Small components for the Hub's tests, and processes that use them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import torch

import timm_compat as tc

TOKEN = "hf_alicesecret"  # of the user alice
CLASSES = ("cat", "dog", "owl")
D = 8
SIZE = 32


@dataclass
class Parts:
    """One space with an extractor and a head whose weights are those of no fresh one."""

    space: tc.CompatSpace
    extractor: tc.CompatExtractor
    head: tc.TaskHead


def make_parts(name: str = "test_efficientnet", seed: int = 0, **space_settings: Any) -> Parts:
    torch.manual_seed(seed)
    space = tc.CompatSpace(D, CLASSES, ["common_classes"], seed=seed, **space_settings).finalize()
    extractor = tc.create_extractor(name, space, img_size=SIZE).eval()
    head = tc.TaskHead(space, CLASSES).eval()
    torch.nn.init.normal_(head.classifier.weight)
    return Parts(space, extractor, head)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def run_python(script: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter, online towards the tests' own Hub."""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )
    assert not check or done.returncode == 0, done.stderr
    return done
