"""What the tests of galleries share: photos of four classes, two extractors of different spaces, a gallery."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import timm_compat as tc

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 30))
CLASSES = ("red", "green", "blue", "yellow")
EACH = 15
COUNT = EACH * len(CLASSES)

KILLED = """
import sys
from timm_compat.gallery import building
building.SHARD_ROWS = 4
import timm_compat as tc
getattr(tc.gallery, sys.argv[1])(*sys.argv[2:], batch_size=2)
"""


def extractor_of(seed: int, dimension: int = 16) -> tc.CompatExtractor:
    """A small network with weights of its own, in a space of its own."""
    torch.manual_seed(seed)
    space = tc.CompatSpace(dimension, methods=["rotation"], seed=seed).finalize()
    return tc.create_extractor("test_resnet", space, img_size=32).eval()


def save_image(file: Path, colour: tuple[int, ...], seed: int) -> None:
    """A noisy image of one colour."""
    noise = np.random.default_rng(seed).normal(0, 45, (24, 28, 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(file)


def fill(place: Path) -> None:
    """Folders ``photos``, ``old``, ``new`` and ``gallery`` (of the old extractor)."""
    for number, (name, colour) in enumerate(zip(CLASSES, COLOURS, strict=True)):
        for image in range(EACH):
            save_image(place / "photos" / name / f"{image}.png", colour, 100 * number + image)
    for name, seed, dimension in (("old", 0, 16), ("new", 1, 24)):
        extractor_of(seed, dimension).save_pretrained(place / name)
    tc.gallery.build(place / "photos", place / "gallery", place / "old")


def stored_rows(gallery: tc.gallery.Gallery) -> dict[str, np.ndarray]:
    """Rows by id."""
    return {own: row for _, ids, _, rows in gallery.shards() for own, row in zip(ids, np.array(rows), strict=True)}


def killed_in_the_middle(words: list[str], gallery: Path, changes: int) -> None:
    """Start a writer, and end it by SIGKILL after so many changes of the manifest, at whatever point it then is."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, *words], stdout=subprocess.DEVNULL)
    deadline, seen = time.monotonic() + 120, _stamp(gallery)
    while changes:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        if _stamp(gallery) != seen:
            seen, changes = _stamp(gallery), changes - 1
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _stamp(gallery: Path) -> int:
    try:
        return (gallery / "gallery.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
