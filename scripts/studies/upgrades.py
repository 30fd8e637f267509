"""Galleries of real photos that go over to another pretrained network: what every way keeps, breaks and costs."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm_compat as tc
from studies.tasks import Scale

SAMPLE = 1000  # half of it fits the maps, half scores the ways


@dataclass(frozen=True)
class Upgrade:
    """One gallery and one new network.

    Attributes:
        photos: folder below the photos' root; a photo's class is the folder that it lies in.
        old: timm's name of the network that embedded the gallery.
        new: timm's name of the one to go over to.
    """

    photos: str
    old: str
    new: str


def measure(upgrade: Upgrade, scale: Scale, seed: int) -> dict[str, Any]:
    """``UpgradePlan.to_dict()`` of a gallery of at most ``scale.images`` photos."""
    root = Path(str(scale.photos_root)) / upgrade.photos
    old, new = (
        tc.split(name, weights=Path(str(scale.weights_root)) / f"{name}.safetensors")[0]
        for name in (upgrade.old, upgrade.new)
    )
    with tempfile.TemporaryDirectory() as place:
        some = _some(root, Path(place) / "photos", scale.images)
        gallery = tc.gallery.build(some, Path(place) / "gallery", old)
        plan = tc.gallery.plan(gallery, new, sample=min(SAMPLE, len(gallery)), labels="folder", seed=seed)
        return {**plan.to_dict(), "build_seconds": gallery.report.seconds}


def _some(root: Path, place: Path, most: int) -> Path:
    """Links to at most so many photos, evenly spread over all."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    step = max(1, -(-len(files) // most))
    for file in files[::step]:
        link = place / file.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    return place
