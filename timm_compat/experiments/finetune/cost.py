"""What a training costs, counted and not timed (floating-point operations, peak memory), and accuracy against it."""

import copy
import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from timm_compat.config import TrainConfig
from timm_compat.training.callbacks import Callback
from timm_compat.training.fit import fit
from timm_compat.training.members import Member
from timm_compat.training.streams import uses_cache

SAMPLE = 256  # images that stand for the others in the pass of a frozen backbone
STEPS = 2  # with the second one the optimiser's state is there from the beginning


@dataclass(frozen=True)
class Curve:
    """One training, measured at the beginning and after every epoch; its cost is that in float32 and one process.

    Attributes:
        steps: of the optimiser, so far; the first is 0.
        seconds: wall time of the training so far, a frozen backbone's pass over the images included, measuring
            accuracy excluded.
        accuracy: in [0, 1], on the target's test images.
        setup_flops: before the first step: the pass of a frozen backbone over all images; 0 where it is not cached.
        step_flops: of a step, forward and backward. As ``torch.utils.flop_counter`` counts: multiplications and
            additions of matrix products, convolutions and attention.
        peak_bytes: of the tensors that live at once (see ``LiveBytes``); images in memory are not counted.
    """

    steps: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()
    setup_flops: float = 0.0
    step_flops: float = 0.0
    peak_bytes: int = 0

    @property
    def flops(self) -> tuple[float, ...]:
        """Floating-point operations so far."""
        return tuple(self.setup_flops * (step > 0) + self.step_flops * step for step in self.steps)

    def reached(self, level: float) -> int | None:
        """Number of the first measurement of at least that accuracy; None if there is none."""
        return next((number for number, value in enumerate(self.accuracy) if value >= level), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Curve":
        """What ``to_dict`` gave."""
        read = ((key, tuple(value) if isinstance(value, list) else value) for key, value in values.items())
        return cls(**dict[str, Any](read))


def measure_cost(member: Member, config: TrainConfig) -> Curve:
    """What the first two steps of a training of copies of a member's parts cost; a curve without measurements."""
    copies = replace(member, extractor=copy.deepcopy(member.extractor), head=copy.deepcopy(member.head))
    count, size = len(member.dataset), min(len(member.dataset), max(SAMPLE, config.batch_size))
    plain: dict[str, Any] = {"mixed_precision": "no", "compile": False, "workers": 0}
    config = replace(config, epochs=max(STEPS, config.epochs), output_dir=None, cache_dir=None, **plain)
    with ExitStack() as modes:
        modes.enter_context(_uncollected())
        counter = _Counter(copies, modes)
        with suppress(_Counted):
            sample = replace(copies, dataset=member.dataset.subset(range(size)))
            fit(copies.extractor.space, [sample], config, callbacks=[counter], progress=None)
    rest = counter.held / size * (count - size) if uses_cache([member], config) else 0
    steps = counter.flops.get_total_flops() - counter.setup_flops
    costs = counter.setup_flops * count / size, steps / STEPS, counter.live.peak + round(rest)
    return Curve((), (), (), *costs)


class _Counted(Exception):  # noqa: N818 (no error: it ends a training as StopIteration ends a loop)
    """Enough was seen of a training."""


class _Counter(Callback):
    """Counts operations and bytes of a training, and ends it after the second step."""

    def __init__(self, member: Member, modes: ExitStack) -> None:
        self.parts, self.modes = nn.ModuleList(filter(None, (member.extractor, member.head))), modes
        self.flops, self.setup_flops, self.held = FlopCounterMode(display=False), 0, 0

    def on_train_begin(self) -> None:
        self.live = LiveBytes(chain(self.parts.parameters(), self.parts.buffers()))
        self.held = -self.live.now
        self.modes.enter_context(self.live)
        self.modes.enter_context(self.flops)

    def on_epoch_begin(self, epoch: int) -> None:
        if epoch == 1:  # a frozen backbone has seen the images by now, and its features are held
            self.setup_flops, self.held = self.flops.get_total_flops(), self.held + self.live.now

    def on_step_end(self, step: int) -> None:
        if step == STEPS:
            raise _Counted


class LiveBytes(TorchDispatchMode):
    """Counts the storages of the given tensors and of all that operations return, while they live.

    Weights, gradients, the optimiser's state, activations and features count; an allocator's reserve, a kernel's
    workspace and the interpreter do not. A process's resident memory would hold all that ran before in it.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in tensors:
            self._hold(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._hold, made)
        return made

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._free, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection in a block: when tensors in reference cycles go would depend on what ran before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
