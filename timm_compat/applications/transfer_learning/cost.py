"""What a training costs, counted and not timed: floating-point operations and peak memory."""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from timm_compat.applications.transfer_learning.live_bytes import LiveBytes
from timm_compat.config import TrainConfig
from timm_compat.data.order import Share
from timm_compat.seeding import seeded
from timm_compat.training.joint import JointModule
from timm_compat.training.members import Member
from timm_compat.training.optimization import create_optimizer
from timm_compat.training.streams import Sources, uses_cache
from timm_compat.training.views import FeatureView, ImageView

SAMPLE = 256  # images that stand for the others in the pass of a frozen backbone
STEPS = 2  # with the second one the optimiser's state is there from the beginning


@dataclass(frozen=True)
class Cost:
    """Cost of a training, in float32 and one process.

    Attributes:
        setup_flops: before the first step: the pass of a frozen backbone over all images; 0 where it is not cached.
        step_flops: of a step, forward and backward. As ``torch.utils.flop_counter`` counts: multiplications and
            additions of matrix products, convolutions and attention.
        peak_bytes: of the tensors that live at once (see ``LiveBytes``); images in memory are not counted.
    """

    setup_flops: float
    step_flops: float
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def measure_cost(member: Member, config: TrainConfig) -> Cost:
    """Run the first two steps of a training on copies of a member's parts.

    Args:
        member: stays as it is.
        config: of the training.
    """
    member = replace(member, extractor=copy.deepcopy(member.extractor), head=copy.deepcopy(member.head))
    size, count = config.batch_size // config.grad_accum_steps, len(member.dataset)
    config = replace(config, batch_size=size, cache_dir=None, workers=0)
    sample = member.dataset.subset(range(min(count, max(SAMPLE, size))))
    device = member.extractor.preprocess.mean.device
    process: Any = SimpleNamespace(device=device, process_index=0, num_processes=1)
    sources = Sources([replace(member, dataset=sample)], None, config, process)
    space, cached = member.extractor.space, uses_cache([member], config)
    view = FeatureView() if cached else ImageView(config.channels_last)
    joint = JointModule(space, [member], config, view=view)
    optimizer = create_optimizer(joint, config)
    held = LiveBytes(chain(joint.parameters(), joint.buffers()))
    with _uncollected(), seeded(config.seed, "cost"), held, FlopCounterMode(display=False) as setup:
        stream: Any = (sources.features(space) if cached else sources.images())[member.name]
    joint.train()
    with _uncollected(), seeded(config.seed, "cost"), held, FlopCounterMode(display=False) as steps:
        for step, batch in enumerate(stream.batches(0, STEPS)):
            joint({member.name: batch.to(device)}, Share(step))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    passes = setup.get_total_flops() * count / len(sample)
    rest = sum(kept.nbytes for kept in stream.features.values()) / len(sample) * (count - len(sample)) if cached else 0
    each = steps.get_total_flops() / STEPS * config.grad_accum_steps
    return Cost(passes, each, held.peak + round(rest))


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
