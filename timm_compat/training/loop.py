"""The loop of a run: steps, epochs, checkpoints; what a step does is a function of its number and of the state."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from timm_compat.config import TrainConfig
from timm_compat.data.order import Batch, Share
from timm_compat.errors import CompatError, ConfigError, TrainingError
from timm_compat.seeding import derive_seed, seed_device
from timm_compat.storage.files import is_sound
from timm_compat.training.callbacks import Callback
from timm_compat.training.checkpoint import Checkpoints, clone_state
from timm_compat.training.history import EpochMeans, Record, write_history
from timm_compat.training.joint import JointModule
from timm_compat.training.optimization import Schedule
from timm_compat.training.streams import Stream
from timm_compat.training.views import POOL

Validate = Callable[[], dict[str, float]]


class Loop:
    """A run in progress.

    Args:
        joint: what learns; its weights are on the accelerator's device.
        model: the same, as Accelerate wrapped it.
        optimizer: as Accelerate wrapped it.
        schedule: of the learning rate.
        streams: of the members, and of the pool.
        accelerator: Accelerate's.
        config: settings.
        steps_per_epoch: optimiser's steps.
        checkpoints: where the state is kept; nowhere if None.
        callbacks: are told of epochs and steps.
    """

    def __init__(
        self,
        joint: JointModule,
        model: Any,
        optimizer: Any,
        schedule: Schedule,
        streams: Mapping[str, Stream],
        accelerator: Any,
        config: TrainConfig,
        steps_per_epoch: int,
        checkpoints: Checkpoints | None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.joint, self.model, self.optimizer, self.schedule = joint, model, optimizer, schedule
        self.streams, self.accelerator, self.config = streams, accelerator, config
        self.steps_per_epoch, self.checkpoints, self.callbacks = steps_per_epoch, checkpoints, callbacks
        self.total_steps = config.epochs * steps_per_epoch
        # One member's activations at a time, where nothing speaks against it; DDP wants all parameters in one pass.
        everything = [[*joint.names, POOL]]
        self._groups = joint.groups if accelerator.num_processes == 1 else everything
        self.average = _average(joint, config)
        self.step, self.seconds = 0, 0.0
        self.history: list[Record] = []
        self.means = EpochMeans()
        self.best: dict[str, Any] | None = None

    def run(self, validate: Validate | None, progress: str | None) -> None:
        """Train from the current step to the last one; the module then holds the result.

        Raises:
            TrainingError: a loss or weights that are not finite, or a checkpoint that cannot be written.
        """
        start = time.perf_counter() - self.seconds
        with self._bar(progress) as bar:
            while self.step < self.total_steps:
                self.model.train()
                for callback in self.callbacks:
                    callback.on_epoch_begin(self.step // self.steps_per_epoch + 1)
                for batches in self._epoch_batches():
                    losses = self._train_step(batches)
                    self.means.add(self.step, losses, self._last_good)
                    self.step += 1
                    self.seconds = time.perf_counter() - start
                    bar.update()
                    for callback in self.callbacks:
                        callback.on_step_end(self.step)
                    if self._is_checkpoint_step():
                        self.save()
                self.seconds = time.perf_counter() - start
                self._end_epoch(validate)
                bar.set_postfix(loss=f"{self.history[-1]['loss']:.3f}", images_per_s=self._images_per_second())
                self._write()
        self._take_result()
        for callback in self.callbacks:
            callback.on_train_end()

    def _bar(self, progress: str | None) -> Any:
        return tqdm(
            total=self.total_steps,
            initial=self.step,
            desc=progress,
            unit="step",
            leave=False,
            # None: no bar where standard error is no terminal.
            disable=None if progress and self.accelerator.is_main_process else True,
        )

    def save(self) -> None:
        """Write a checkpoint, in the main process.

        Raises:
            TrainingError: the last loss or a weight is not finite, or the checkpoint cannot be written.
        """
        self._check_sound()
        self._write()

    def _write(self) -> None:
        if self.checkpoints is not None and self.accelerator.is_main_process:
            self.checkpoints.save(self.step, self._state())
            write_history(self.checkpoints.output, self.history)

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step = step
        self.joint.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.best, self.history, self.seconds = state["best"], state["history"], state["seconds"]
        self.means = EpochMeans.from_state(state["means"], self.accelerator.device)

    def _check_sound(self) -> None:
        # The loss of the last step is that before its update, so it says nothing of the weights.
        self.means.settle(self._last_good)
        averaged = {} if self.average is None else self.average.module.state_dict()
        # What no step changes is looked at once, at the end.
        frozen = () if self.step == self.total_steps else self.joint.frozen
        bad = next((name for state in (self.joint.state_dict(), averaged) for name in _unsound(state, frozen)), None)
        # All processes stop together: statistics may have gone wrong in one of them only.
        count = self.accelerator.reduce(torch.tensor(float(bad is not None), device=self.accelerator.device), "sum")
        if count:
            epoch = (self.step - 1) // self.steps_per_epoch + 1
            raise TrainingError(
                f"epoch {epoch}, step {self.step}: expected finite weights, got NaN or infinity in "
                f"{bad or 'another process'}; last good checkpoint: {self._last_good()}; lower lr, set "
                "clip_grad, or use mixed_precision='no', then start again or resume"
            )

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "model": self.joint.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "best": self.best,
            "history": self.history,
            "means": self.means.state(),
            "seconds": self.seconds,
        }

    def _epoch_batches(self) -> Iterator[dict[str, Batch]]:
        last = (self.step // self.steps_per_epoch + 1) * self.steps_per_epoch
        sources = {name: stream.batches(self.step, last) for name, stream in self.streams.items()}
        for _ in range(self.step, last):
            yield {name: next(batches).to(self.accelerator.device) for name, batches in sources.items()}

    def _train_step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        accelerator, parts = self.accelerator, self.config.grad_accum_steps
        rank, processes = accelerator.process_index, accelerator.num_processes
        self.schedule.set(self.step)
        # Dropout and the like draw from a state that follows from the step, so none has to be kept.
        seed_device(derive_seed(self.config.seed, "step", str(self.step), str(rank)), accelerator.device)
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            share = Share(self.step, rank + processes * part, processes * parts)
            with accelerator.accumulate(self.model):
                losses: dict[str, Tensor] = {}
                for group in self._groups:
                    chosen = {name: batches[name].part(part, parts) for name in group if name in batches}
                    found = self._losses(chosen, share)
                    accelerator.backward(found["loss"])
                    losses |= {**found, "loss": losses.get("loss", 0) + found["loss"].detach()}
                if accelerator.sync_gradients and self.config.clip_grad:
                    accelerator.clip_grad_norm_(self.joint.parameters(), self.config.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts
        if self.average is not None:
            self.average.update(self.joint, step=self.step + 1)
        return sums

    def _losses(self, batches: Mapping[str, Batch], share: Share) -> dict[str, Tensor]:
        try:
            losses: dict[str, Tensor] = self.model(batches, share)
        except ValueError as error:
            # BatchNorm cannot normalise one value; only the pass tells whether a backbone has such a layer.
            if isinstance(error, CompatError) or all(len(batch.labels) > 1 for batch in batches.values()):
                raise
            raise ConfigError(
                f"batch_size: expected at least 2 images in every pass, for BatchNorm, got {self.config.batch_size} "
                f"over {share.stride} passes ({error}); raise batch_size, lower grad_accum_steps, or use a "
                "backbone without BatchNorm in a space with normalization='layer'"
            ) from error
        return losses

    def _end_epoch(self, validate: Validate | None) -> None:
        self._check_sound()
        means = self.accelerator.reduce(self.means.averages(), "mean")
        record: Record = {"epoch": self.step // self.steps_per_epoch, "lr": self.schedule.set(self.step - 1)}
        record |= dict(zip(self.means.names, means.tolist(), strict=True))
        with self._averaged():
            self.joint.eval()
            record |= validate() if validate else {}
            self._keep_best(record)
            record = {**record, "seconds": self.seconds}
            for callback in self.callbacks:
                callback.on_epoch_end(self.step // self.steps_per_epoch, record)
        self.history.append(record)
        self.accelerator.log({key: value for key, value in record.items() if key != "epoch"}, step=self.step)
        self.means = EpochMeans()

    def _keep_best(self, record: Record) -> None:
        metric = self.config.best_metric
        if metric is None:
            return
        if metric not in record:
            raise ConfigError(f"best_metric: expected a number of validate, {', '.join(record)}, got {metric!r}")
        # One number for all processes, whose BatchNorm statistics differ: they must choose the same epoch.
        value = float(self.accelerator.reduce(torch.tensor(record[metric], device=self.accelerator.device), "mean"))
        if self.best is None or value > self.best["value"]:
            self.best = {"value": value, "epoch": record["epoch"], "model": clone_state(self.joint)}

    def _take_result(self) -> None:
        if self.best is not None:
            self.joint.load_state_dict(self.best["model"])
        elif self.average is not None:
            self.joint.load_state_dict(self.average.module.state_dict())
        for tensor in self.joint.buffers():
            # BatchNorm saw another share of each batch in every process.
            if tensor.is_floating_point() and self.accelerator.num_processes > 1:
                tensor.copy_(self.accelerator.reduce(tensor, "mean"))
        self.joint.eval()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the current ones, where there are any."""
        if self.average is None:
            yield
            return
        own = clone_state(self.joint)
        self.joint.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.joint.load_state_dict(own)

    def _is_checkpoint_step(self) -> bool:
        every = self.config.checkpoint_steps
        return every is not None and self.step % every == 0 and self.step % self.steps_per_epoch != 0

    def _last_good(self) -> str:
        return "none" if self.checkpoints is None else self.checkpoints.newest_name()

    def _images_per_second(self) -> str:
        seen = self.step * self.config.batch_size * len(self.joint.names)
        return f"{seen / max(self.seconds, 1e-9):.0f}"


def steps_per_epoch(sizes: list[int], batch_size: int) -> int:
    """Steps in which the largest data set is seen once."""
    return max(math.ceil(size / batch_size) for size in sizes)


def _unsound(state: Mapping[str, Tensor], but: tuple[str, ...]) -> Iterator[str]:
    """Names of weights and statistics with NaN; some architectures keep bounds, which may be infinite, as buffers."""
    for name, tensor in state.items():
        if name.startswith(but):
            continue
        bounds = () if name.endswith(("weight", "bias", "running_mean", "running_var")) else (name,)
        if not is_sound(name, tensor, bounds):
            yield name


def _average(joint: JointModule, config: TrainConfig) -> Any:
    if config.model_ema_decay is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(joint, decay=config.model_ema_decay, use_warmup=True)
