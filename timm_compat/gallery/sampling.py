"""A sample of the stored images, embedded by both models, to measure ways and fit maps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_compat.errors import CompatError, ConfigError, DataError
from timm_compat.gallery.embedding import ALONE, Embedders, dataset_of
from timm_compat.gallery.ids import resolved
from timm_compat.gallery.manifest import EMBEDDED
from timm_compat.gallery.stored import Stored
from timm_compat.gallery.ways import LEAST_PAIRS, REEMBED, Pairs
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.passes import Network, run_networks
from timm_compat.models.run_options import RunOptions
from timm_compat.storage.files import file_sha256

LEAST_SAMPLE = 2 * LEAST_PAIRS


@dataclass(frozen=True)
class Sample:
    """Sampled images of a gallery that are on disk as they were embedded.

    Attributes:
        ids: of them.
        hashes: SHA-256 of their files.
        files: of them.
        rows: (n, D), as they are stored.
        missing: how many of the images looked at were gone or changed.
    """

    ids: tuple[str, ...]
    hashes: tuple[str, ...]
    files: tuple[Path, ...]
    rows: Tensor
    missing: int


def check_way(stored: Stored, new: CompatExtractor, way: str) -> None:
    """Refuse a way that a gallery in its state cannot go.

    Raises:
        ConfigError: the message says what it can.
        DataError: an empty gallery.
    """
    manifest = stored.manifest
    if not manifest.num_images:
        raise DataError(f"{stored.folder}: expected a gallery with images, got an empty one; build it")
    current = manifest.kinds[manifest.current]
    if way != REEMBED and manifest.kinds_present == (manifest.current,) and current.digest == new.digest():
        raise ConfigError(f"{stored.folder}: expected another extractor, got the one that embedded every image already")
    if way != REEMBED and len(manifest.spaces_present) > 1:
        raise ConfigError(
            f"{stored.folder}: expected rows of one space, got {len(manifest.spaces_present)}: a blend, or an upgrade "
            "that is not over; the way from here is to re-embed (gallery upgrade --to EXTRACTOR --apply reembed)"
        )


def draw(stored: Stored, count: int, seed: int, least: int = LEAST_SAMPLE) -> Sample:
    """Images of a gallery, at random, that are on disk as they were embedded.

    Raises:
        ConfigError: a sample of fewer than ``least``.
        DataError: fewer than ``least`` are there.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise ConfigError(f"sample: expected an integer of at least {least}, got {count!r}")
    manifest = stored.manifest
    root = resolved(manifest.images, stored.folder)
    starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
    order = torch.randperm(manifest.num_images, generator=torch.Generator().manual_seed(seed)).numpy()
    entries = {number: stored.entries(shard) for number, shard in enumerate(manifest.shards)}
    ids: list[str] = []
    hashes: list[str] = []
    rows: list[NDArray[np.float32]] = []
    missing = 0
    for place in order:
        number = int(np.searchsorted(starts, place, side="right") - 1)
        row = int(place - starts[number])
        own, digest = entries[number].ids[row], entries[number].hashes[row]
        if not as_embedded(root / own, digest):
            missing += 1
            continue
        ids.append(own)
        hashes.append(digest)
        rows.append(np.array(stored.rows(manifest.shards[number])[row]))
        if len(ids) == count:
            break
    if len(ids) < least:
        raise DataError(
            f"{stored.folder}: expected at least {least} of its images at {root}, found {len(ids)} as they were "
            "embedded: without images no way can be measured and no map fitted, for both need what both "
            "models make of the same images; put the images back, or keep the model"
        )
    return Sample(
        tuple(ids), tuple(hashes), tuple(root / own for own in ids), torch.from_numpy(np.stack(rows)), missing
    )


def as_embedded(file: Path, digest: str) -> bool:
    """Whether a file is there, with the hash that it had."""
    try:
        return file_sha256(file) == digest
    except OSError:
        return False


def measure_pairs(
    stored: Stored, new: CompatExtractor, drawn: Sample, options: RunOptions, given: list[CompatExtractor]
) -> tuple[Pairs, float, CompatExtractor | None]:
    """What both models make of a sample, seconds of the new one's pass, and the current query extractor if at hand.

    Raises:
        CompatError: stored rows are not what the current extractor gives, and it cannot be loaded.
    """
    start = time.perf_counter()
    pooled = _passed(Network.of(new, pooled=True), new, drawn.files, options)
    seconds = time.perf_counter() - start
    manifest = stored.manifest
    (space,) = manifest.spaces_present
    model = manifest.spaces[space]
    embedders = Embedders(manifest, stored.folder, given)
    kinds = [manifest.kinds[key] for key in manifest.kinds_present]
    same = all(kind.made_by == EMBEDDED and kind.digest == model.digest for kind in kinds)
    try:
        current: CompatExtractor | None = embedders.of(space)
    except CompatError:
        if not same:
            raise
        current = None
    queries = drawn.rows
    if not same and current is not None:
        queries = features_of(current, drawn.files, options)
    return Pairs(drawn.rows, queries, pooled, through_interface(new, pooled)), seconds, current


def features_of(extractor: CompatExtractor, files: Sequence[Path], options: RunOptions) -> Tensor:
    """An extractor's features (n, D) of image files."""
    return _passed(Network.of(extractor), extractor, files, options)


def _passed(network: Network, extractor: CompatExtractor, files: Sequence[Path], options: RunOptions) -> Tensor:
    images = dataset_of(files, [extractor])
    passes = run_networks([network], images, options, description="sample", process=ALONE)
    return torch.cat([passed.outputs[0].cpu() for passed in passes])


@torch.no_grad()
def through_interface(extractor: CompatExtractor, pooled: Tensor) -> Tensor:
    """An extractor's features (n, D) from its backbone's (n, F), on the CPU."""
    interface = extractor.interface
    home = next(interface.parameters()).device
    was_training = interface.training
    interface.eval()
    features = interface(pooled.to(home)).cpu()
    interface.train(was_training)
    return features
