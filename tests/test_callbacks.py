"""Callbacks of a training: what they are told, when, and that they change nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import timm_compat as tc

FAST = {"epochs": 2, "batch_size": 32}


class Told(tc.Callback):
    """Notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.metrics: list[Mapping[str, float]] = []

    def on_train_begin(self) -> None:
        self.calls.append(("train begins",))

    def on_epoch_begin(self, epoch: int) -> None:
        self.calls.append(("epoch begins", epoch))

    def on_step_end(self, step: int) -> None:
        torch.rand(3)  # draws that must not matter
        self.calls.append(("step", step))

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.calls.append(("epoch", epoch))
        self.metrics.append(dict(metrics))

    def on_train_end(self) -> None:
        self.calls.append(("train ends",))


def member(trainable: str = "full") -> tc.Member:
    data = tc.data.load_digits("train").subset(range(64))
    space = tc.CompatSpace(8, data.class_names, ["common_classes"])
    torch.manual_seed(0)
    extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16, drop_rate=0.2, trainable=trainable)
    return tc.Member("a", extractor, tc.TaskHead(space, data.class_names, drop_rate=0.2), data)


def fit(part: tc.Member, *callbacks: tc.Callback, **settings: Any) -> tc.FitResult:
    config, resume = tc.TrainConfig(**{**FAST, **settings}), settings.get("output_dir") is not None
    return tc.fit(part.extractor.space, [part], config, callbacks=callbacks, resume=resume, progress=None)


def test_they_are_told_in_order_and_change_nothing() -> None:
    told, watched, alone = Told(), member(), member()
    result = fit(watched, told)
    epochs = [[("epoch begins", n), ("step", 2 * n - 1), ("step", 2 * n), ("epoch", n)] for n in (1, 2)]
    assert told.calls == [("train begins",), *epochs[0], *epochs[1], ("train ends",)]
    assert told.metrics == list(result.history)
    fit(alone)
    assert watched.extractor.digest() == alone.extractor.digest()


def test_an_epoch_ends_in_evaluation_mode_with_averaged_weights() -> None:
    part = member()
    seen = []

    class Look(tc.Callback):
        def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
            seen.append((part.extractor.training, part.extractor.digest()))

    result_is = []

    class Last(tc.Callback):
        def on_train_end(self) -> None:
            result_is.append(part.extractor.digest())

    fit(part, Look(), Last(), model_ema_decay=0.5)
    assert [training for training, _ in seen] == [False, False]
    assert seen[-1][1] == result_is[0] == part.extractor.digest()


def test_frozen_backbones_have_seen_nothing_when_a_training_begins() -> None:
    part, order = member("frozen"), []
    model = part.extractor.backbone.model
    model.register_forward_hook(lambda *_: order.append("pass"))

    class Begin(tc.Callback):
        def on_train_begin(self) -> None:
            order.append("begin")

        def on_epoch_begin(self, epoch: int) -> None:
            order.append(f"epoch {epoch}")

    fit(part, Begin())
    assert order[0] == "begin"
    assert order[-2:] == ["epoch 1", "epoch 2"]
    assert set(order[1:-2]) == {"pass"}


def test_a_resumed_run_tells_of_the_rest_and_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    class Broken(tc.Callback):
        def on_step_end(self, step: int) -> None:
            if step == 4:
                raise RuntimeError("the plug was pulled")

    parts = [member(), member()]
    settings = {"epochs": 3, "checkpoint_steps": 1}
    with pytest.raises(RuntimeError, match="plug"):
        fit(parts[0], Broken(), **settings, output_dir=str(tmp_path / "run"))
    told = Told()
    fit(again := member(), told, **settings, output_dir=str(tmp_path / "run"))
    whole = fit(parts[1], **settings)
    # Step 4 was done, and not yet written.
    assert told.calls[1:5] == [("epoch begins", 2), ("step", 4), ("epoch", 2), ("epoch begins", 3)]
    assert again.extractor.digest() == parts[1].extractor.digest()
    assert told.metrics[-1]["loss"] == whole.history[-1]["loss"]
