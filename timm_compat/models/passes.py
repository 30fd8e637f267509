"""Every pass of frozen networks over images: evaluation mode, no gradients, bounded memory, any device."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from timm_compat.data.framing import same_framing
from timm_compat.data.raw_batches import LeftOut, RawBatch, RawImages, count_images, raw_batches
from timm_compat.data.transforms import evaluation_transform
from timm_compat.errors import ConfigError
from timm_compat.models.batch_size import default_batch_size
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.preprocess import Preprocess
from timm_compat.models.run_options import PRECISIONS, RunKeywords, RunOptions, home_of
from timm_compat.processes import agreed, current_process

DEFAULTS = RunOptions()
# What allocators say that have no error of their own, in lower case.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passed:
    """What some images gave.

    Attributes:
        positions: (b,), int64 on the CPU, which images of the set.
        outputs: one (b, D), (b, D, H', W') or (b, F) a network, float32, on the device of the pass.
        labels: (b,), int64 on the CPU, where the set has labels.
    """

    positions: Tensor
    outputs: tuple[Tensor, ...]
    labels: Tensor | None


@dataclass(frozen=True)
class Network:
    """Something that raw images can pass.

    Attributes:
        module: holds all weights, those of the preprocessing too.
        preprocess: raw images to what ``forward`` takes.
        data_config: timm's six settings of the preprocessing.
        forward: normalised images (b, C, H, W) to outputs (b, ...).
    """

    module: nn.Module
    preprocess: Preprocess
    data_config: Mapping[str, Any]
    forward: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, extractor: CompatExtractor, *, pooled: bool = False) -> Self:
        """An extractor's features of the space or, with ``pooled``, the backbone's before the interface."""
        forward = extractor.backbone if pooled else extractor
        return cls(extractor, extractor.preprocess, extractor.data_config, forward)


def passes(
    extractors: Sequence[CompatExtractor],
    images: RawImages,
    *,
    pooled: Collection[int] = (),
    options: RunOptions = DEFAULTS,
    description: str = "",
) -> Iterator[Passed]:
    """One pass of extractors over images, a batch at a time; nothing is kept.

    Image files are read and decoded once, and resized once for all extractors that see them alike. Under ``accelerate
    launch`` every process gets its share of the batches: see ``processes.summed`` and ``processes.gathered``. A batch
    that does not fit into memory is halved, and the pass goes on with the same images. Extractors are in evaluation
    mode, and on the device of the pass, until the iterator ends; then they are as they were.

    Args:
        extractors: as many as are to see the images.
        images: see ``extract_features``.
        pooled: indices of the extractors whose backbone's features are wanted instead of the space's.
        options: device, batch size, precision, workers, progress.
        description: of the progress bar.

    Raises:
        ConfigError: a precision that the device does not compute in, or memory that does not hold a single image.
        DataError: no image, or one that cannot be decoded.
        ImageError: another rank, number of channels or dtype.
    """
    networks = [Network.of(extractor, pooled=number in pooled) for number, extractor in enumerate(extractors)]
    return run_networks(networks, images, options, description=description)


def extract_features(extractor: CompatExtractor, images: RawImages, **run: Unpack[RunKeywords]) -> Tensor:
    """Features of raw images, in evaluation mode, on the extractor's device.

    Under ``accelerate launch`` every process that calls this processes all images.

    Args:
        extractor: preprocesses the images itself.
        images: (N, C, h, w), uint8 or floating point in 0 to 1, as a tensor or an array; an array of uint8 also
            (N, h, w) or (N, h, w, C); a data set; or an iterable of batches, such as a ``DataLoader``, that are tensors
            or (tensor, labels).
        **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` (see ``RunOptions``).

    Returns:
        (N, D), or (N, D, H', W') at level "map"; float32.

    Raises:
        ConfigError: a setting out of range, or a device that is not available.
        DataError: no image, or one that cannot be decoded.
        ImageError: another rank, number of channels or dtype.

    Example:
        >>> extractor = tc.create_extractor("test_resnet", tc.CompatSpace(64), in_chans=1, img_size=32)
        >>> tc.extract_features(extractor, tc.data.load_digits("test")).shape
        torch.Size([449, 64])
    """
    home, options = home_of(extractor), RunOptions(**run)
    alone = run_networks([Network.of(extractor)], images, options, process=(0, 1))
    return torch.cat([passed.outputs[0].to(home) for passed in alone])


def run_networks(
    networks: Sequence[Network],
    images: RawImages,
    options: RunOptions = DEFAULTS,
    *,
    description: str = "",
    left_out: LeftOut | None = None,
    process: tuple[int, int] | None = None,
) -> Iterator[Passed]:
    """``passes`` for anything that images can pass.

    Args:
        networks: one or more.
        images: see ``extract_features``.
        options: device, batch size, precision, workers, progress.
        description: of the progress bar.
        left_out: is told of image files that cannot be decoded, which then are left out; they are errors if None.
        process: (rank, number of processes); those of the launcher if None.
    """
    modules = [network.module for network in networks]
    device = options.device_for(modules)
    size = options.batch_size or default_batch_size([network.data_config for network in networks], modules, device)
    size = size if process else agreed(size)
    transforms, views = _seen_alike(networks)
    layout = best_layout(modules, device, options.amp)
    batches = raw_batches(
        images, size, transforms, process=process or current_process(), workers=options.workers,
        pin_memory=device.type == "cuda", left_out=left_out,
    )  # fmt: skip
    compute = _Computer(networks, views, device, options.amp, layout, size)
    with _bar(options, count_images(images), description) as bar, evaluating(*modules), placed(modules, device, layout):
        said = 0
        for batch, outputs in _one_ahead(batches, compute):
            if said != compute.size:
                said = compute.size
                _logger.info("%s, batch size %d, %s", device, said, options.amp or "float32")
            yield Passed(batch.positions, outputs, batch.labels)
            bar.update(len(batch.positions))
        compute.check_finite()


class _Computer:
    """The networks on a device, at a batch size that is halved where memory does not hold it."""

    def __init__(
        self,
        networks: Sequence[Network],
        views: Sequence[int],
        device: torch.device,
        amp: str | None,
        layout: torch.memory_format,
        size: int,
    ) -> None:
        self.networks, self.views = networks, views
        self.device, self.amp, self.layout, self.size = device, amp, layout, size
        self._finite: Tensor | None = None

    def moved(self, batch: RawBatch) -> RawBatch:
        """The images on the device; copied while it still computes."""
        return replace(batch, views=tuple(view.to(self.device, non_blocking=True) for view in batch.views))

    def outputs(self, batch: RawBatch) -> tuple[Tensor, ...]:
        """One (b, ...) a network."""
        full, views = self.size, [batch.view(view) for view in self.views]
        while True:
            try:
                chunks = zip(*(view.split(self.size) for view in views), strict=True)
                parts = [self._outputs(chunk, batch.framed) for chunk in chunks]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse_a_single_image(error)
            else:
                break
            # Not before the error is gone: its traceback holds the tensors.
            self.size = (min(self.size, len(views[0])) + 1) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if self.size != full:
            _logger.warning(
                "%s: %d images at a time do not fit into memory; continuing with %d", self.device, full, self.size
            )
        joined = tuple(torch.cat(found) if len(found) > 1 else found[0] for found in zip(*parts, strict=True))
        self._note_finite(joined)
        return joined

    def check_finite(self) -> None:
        """Refuse outputs that lower precision has spoilt.

        Raises:
            ConfigError: one is no finite number.
        """
        if self._finite is not None and not bool(self._finite):
            raise ConfigError(
                f"amp: expected finite features, got others with {self.amp} on {self.device}; "
                f"{'use bf16, or ' if self.amp == 'fp16' else ''}leave it out for float32"
            )

    def _outputs(self, views: Sequence[Tensor], framed: bool) -> list[Tensor]:
        precision: Any = nullcontext()
        if self.amp is not None:
            precision = torch.autocast(self.device.type, PRECISIONS[self.amp])
        with torch.no_grad(), precision:
            return [
                network.forward(self._prepared(network, view, framed)).float()
                for network, view in zip(self.networks, views, strict=True)
            ]

    def _prepared(self, network: Network, images: Tensor, framed: bool) -> Tensor:
        prepared: Tensor = network.preprocess(images, framed)
        dtype = next((p.dtype for p in network.module.parameters() if p.is_floating_point()), prepared.dtype)
        return prepared.to(dtype).contiguous(memory_format=self.layout)

    def _note_finite(self, outputs: Sequence[Tensor]) -> None:
        # On the device, so that nobody waits for it here; looked at once, at the end.
        if self.amp is not None:
            for output in outputs:
                finite = output.isfinite().all()
                self._finite = finite if self._finite is None else self._finite & finite

    def _refuse_a_single_image(self, error: BaseException) -> None:
        if self.size == 1:
            raise ConfigError(
                f"{self.device}: expected memory for one image at a time, got less ({str(error).splitlines()[0]}); "
                "use smaller images (img_size), a smaller network, amp, or another device"
            ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave this error."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def _one_ahead(batches: Iterator[RawBatch], compute: _Computer) -> Iterator[tuple[RawBatch, tuple[Tensor, ...]]]:
    # A GPU works on after it was asked: the next images are fetched and copied before anyone waits for its results.
    waiting = next(batches, None)
    following = None if waiting is None else compute.moved(waiting)
    while following is not None:
        batch, outputs = following, compute.outputs(following)
        waiting = next(batches, None)
        following = None if waiting is None else compute.moved(waiting)
        yield batch, outputs


def _seen_alike(networks: Sequence[Network]) -> tuple[list[Any], list[int]]:
    """A transform for every group of networks that see image files alike, and each network's group."""
    keys = [same_framing(network.data_config) for network in networks]
    groups = list(dict.fromkeys(keys))
    transforms = [evaluation_transform(networks[keys.index(group)].data_config) for group in groups]
    return transforms, [groups.index(key) for key in keys]


def best_layout(modules: Sequence[nn.Module], device: torch.device, amp: str | None) -> torch.memory_format:
    """The memory layout in which these networks run fastest there."""
    # Measured on one core, ms an image at 224 px, contiguous and channels_last: lite0 49 and 39, resnet50 226 and 179;
    # but convnext_tiny, whose norms permute, 189 and 220. On a GPU it is the layout of tensor cores.
    normalised = any(isinstance(part, nn.BatchNorm2d) for module in modules for part in module.modules())
    convolves = any(isinstance(part, nn.Conv2d) for module in modules for part in module.modules())
    gains = normalised if device.type == "cpu" else device.type == "cuda" and convolves and amp is not None
    return torch.channels_last if gains else torch.contiguous_format


@contextmanager
def placed(modules: Sequence[nn.Module], device: torch.device, layout: torch.memory_format) -> Iterator[None]:
    """Networks on a device and in a layout for a block; afterwards their weights are where and how they were."""
    kept: list[tuple[Any, str, Tensor, Tensor]] = [
        (own, name, tensor, tensor.data)
        for module in modules
        for part in module.modules()
        for own in (part._parameters, part._buffers)
        for name, tensor in own.items()
        if tensor is not None
    ]
    try:
        for module in modules:
            module.to(device)
            if layout != torch.contiguous_format:
                module.to(memory_format=layout)
        yield
    finally:
        for own, name, tensor, data in kept:
            tensor.data = data
            own[name] = tensor


def prepare(extractor: CompatExtractor, batch: RawBatch) -> Tensor:
    """A batch of raw images on the extractor's device, framed and normalised."""
    return extractor.preprocess(batch.view(0).to(extractor.device), batch.framed)


def _bar(options: RunOptions, count: int | None, description: str) -> Any:
    from tqdm import tqdm

    hidden = not options.shows_progress
    return tqdm(total=count, desc=description or None, unit="image", disable=hidden, leave=False)
