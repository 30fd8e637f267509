"""Which extractor embeds for which space, and its pass over images, batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.data.image_dataset import ImageDataset, mode_of
from timm_compat.data.image_files import CLASS_NAME, ImageFiles
from timm_compat.data.listing import list_images
from timm_compat.data.raw_batches import LeftOut, RawImages
from timm_compat.errors import (
    CompatError,
    ComponentFileError,
    ConfigError,
    DataError,
    DraftSpaceError,
    SpaceMismatchError,
)
from timm_compat.gallery.ids import relative, resolved
from timm_compat.gallery.manifest import Kind, Manifest, QueryModel
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.passes import DEFAULTS, Network, Passed, run_networks
from timm_compat.models.run_options import RunOptions
from timm_compat.models.unwrapping import unwrapped

ALONE = (0, 1)  # every process works by itself, like a command that is started several times
Queries = str | Path | Sequence[str | Path] | RawImages


@dataclass(frozen=True)
class Query:
    """Queries embedded for some spaces.

    Attributes:
        names: paths, or numbers as text.
        features: by fingerprint (Q, D), float32, on the CPU.
    """

    names: tuple[str, ...]
    features: Mapping[str, Tensor]

    def for_kind(self, kind: Kind) -> Tensor:
        """Unit vectors (Q, dimension) whose product with a kind's rows of length 1 is the (mean) cosine."""
        parts = [F.normalize(self.features[space], dim=1) for space in kind.spaces]
        return torch.cat(parts, dim=1) / len(parts) ** 0.5


def opened(extractor: CompatExtractor | str | Path) -> CompatExtractor:
    """An extractor of pooled features, loaded where a folder or a Hub id is given.

    Raises:
        ConfigError: features of level "map".
        DraftSpaceError: its space may still change.
        ComponentFileError, HubError: as ``from_pretrained``.
    """
    loaded = CompatExtractor.from_pretrained(extractor) if isinstance(extractor, str | Path) else extractor
    found: CompatExtractor = unwrapped(loaded)
    if found.space.level != "pooled":
        raise ConfigError('gallery: expected an extractor of level "pooled", got level "map": its features are maps')
    if not found.space.is_final:
        raise DraftSpaceError(
            "gallery: expected an extractor of a final space, got a draft: train it, or finalize() it"
        )
    return found


def query_model(extractor: CompatExtractor, folder: Path) -> QueryModel:
    """What a gallery notes about an extractor."""
    source = extractor.known_source()
    config = extractor.data_config
    preprocessing = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    space = extractor.space
    facts = (extractor.digest(), extractor.architecture, space.feature_dim, preprocessing, space.to_config())
    if source is None:
        return QueryModel(*facts)
    place = source.location if source.commit else relative(source.location, folder)
    return QueryModel(*facts, place, source.commit, source.subfolder)


class Embedders:
    """The extractors that a gallery's queries and images need, loaded when they are first asked for.

    Args:
        manifest: of the gallery.
        folder: of the gallery.
        given: extractors to use in place of those that the gallery names, each for its own space.
        kept: those that were loaded before, by digest; gets what is loaded now.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        given: Sequence[CompatExtractor] = (),
        kept: dict[str, CompatExtractor] | None = None,
    ) -> None:
        self.manifest, self.folder = manifest, folder
        self._kept = {} if kept is None else kept
        self._found = {extractor.space.fingerprint: extractor for extractor in given}

    def of(self, space: str) -> CompatExtractor:
        """The extractor that embeds queries for a space.

        Raises:
            ComponentFileError, HubError: it cannot be loaded, or is another one than the gallery names.
        """
        if space in self._found:
            return self._found[space]
        model = self.manifest.spaces[space]
        if model.digest not in self._kept:
            self._kept[model.digest] = _loaded(model, space, self.folder)
        return self._kept[model.digest]


def _loaded(model: QueryModel, space: str, folder: Path) -> CompatExtractor:
    way_out = f"give an extractor of space {space} (--extractor)"
    if model.location is None:
        raise ConfigError(
            f"{folder}: expected to know where its extractor {model.architecture} is, got none; {way_out}"
        )
    where: dict[str, Any] = {"revision": model.commit, "subfolder": model.subfolder}
    place = model.location if model.commit else resolved(model.location, folder)
    try:
        extractor = CompatExtractor.from_pretrained(place, **where)
    except CompatError as error:
        raise type(error)(f"{error}; {folder} was embedded with it: {way_out}") from error
    if extractor.digest() != model.digest:
        raise ComponentFileError(
            f"{place}: expected the extractor that {folder} was embedded with (digest {model.digest[:12]}...), got "
            f"another; {way_out}"
        )
    return extractor


def check_spaces(manifest: Manifest, given: Sequence[CompatExtractor], folder: Path) -> None:
    """Refuse query extractors of a space that no stored row lives in.

    Raises:
        SpaceMismatchError: the message says what to do.
    """
    present = manifest.spaces_present
    for extractor in given:
        if extractor.space.fingerprint not in present:
            raise SpaceMismatchError(
                f"{folder}: expected an extractor of space {' or '.join(present)}, got {extractor.architecture} of "
                f"space {extractor.space.fingerprint}: their embeddings cannot be compared; see what an upgrade would "
                "give (timm-compat gallery upgrade --to EXTRACTOR), or join the network to it (timm-compat join)"
            )


def dataset_of(files: Sequence[Path], extractors: Sequence[CompatExtractor]) -> ImageDataset:
    """Image files as unlabelled images for some extractors.

    Raises:
        ConfigError: neither grey nor colour, or extractors that differ in it.
    """
    channels = {extractor.data_config["input_size"][0] for extractor in extractors}
    if len(channels) > 1:
        raise ConfigError(f"gallery: expected extractors for images of one number of channels, got {sorted(channels)}")
    labels = [0] * len(files)
    source = ImageFiles(list(files), labels)
    return ImageDataset.from_source(source, labels, [CLASS_NAME], mode=mode_of(channels.pop()))


def embed(
    extractors: Sequence[CompatExtractor],
    images: RawImages,
    options: RunOptions = DEFAULTS,
    *,
    description: str = "",
    left_out: LeftOut | None = None,
) -> Iterator[Passed]:
    """Features of some extractors from one pass, as ``run_networks``."""
    networks = [Network.of(extractor) for extractor in extractors]
    return run_networks(networks, images, options, description=description, left_out=left_out, process=ALONE)


def embed_queries(
    embedders: Embedders, spaces: Sequence[str], queries: Queries, options: RunOptions = DEFAULTS
) -> Query:
    """Queries for every one of these spaces, in one pass.

    Args:
        embedders: of the gallery.
        spaces: fingerprints.
        queries: image files, folders of them, or raw images as for ``extract_features``.
        options: device, batch size, precision, workers.

    Raises:
        DataError: no image, or one that cannot be decoded.
    """
    extractors = [embedders.of(space) for space in spaces]
    files = query_files(queries)
    images: Any = queries if files is None else dataset_of(files, extractors)
    chunks = [[output.cpu() for output in passed.outputs] for passed in embed(extractors, images, options)]
    features = {space: torch.cat(parts) for space, parts in zip(spaces, zip(*chunks, strict=True), strict=True)}
    count = len(next(iter(features.values())))
    return Query(tuple(map(str, range(count) if files is None else files)), features)


def query_files(queries: Queries) -> list[Path] | None:
    """Image files, those below a folder included; None where queries are images already.

    Raises:
        DataError: there is none at a path.
    """
    given: Any = [queries] if isinstance(queries, str | Path) else queries
    if not (isinstance(given, list | tuple) and given and all(isinstance(part, str | Path) for part in given)):
        return None
    files: list[Path] = []
    for part in map(Path, given):
        found = list_images(part) if part.is_dir() else [part] if part.is_file() else []
        if not found:
            raise DataError(f"queries: expected an image or a folder with images at {str(part)!r}, found none")
        files += found
    return files
