"""A training that cannot go well is refused or stopped, and leaves what was sound."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import timm_compat as tc
from timm_compat.data.order import Batch, Share
from timm_compat.training.joint import JointModule
from timm_compat.training.optimization import create_optimizer

WHOLE = 64  # images, and a batch: one step an epoch


def train(
    output: Path | None = None,
    backbone: str = "test_resnet",
    members: int = 1,
    normalization: str = "batch",
    resume: bool = False,
    validate: Any = None,
    pool: Any = None,
    **settings: Any,
) -> tuple[tc.FitResult, list[tc.Member]]:
    data = tc.data.load_digits("train").subset(range(WHOLE))
    space = tc.CompatSpace(8, data.class_names, ["common_classes"], normalization=normalization)
    torch.manual_seed(0)
    made = [
        tc.Member(
            name,
            tc.create_extractor(backbone, space, in_chans=1, img_size=32 if "vit" in backbone else 16),
            tc.TaskHead(space, data.class_names),
            data,
        )
        for name in "abc"[:members]
    ]
    config = tc.TrainConfig(**{"epochs": 1, "batch_size": WHOLE, "output_dir": output, **settings})
    return tc.fit(space, made, config, resume=resume, validate=validate, pool=pool, progress=None), made


# The third epoch's step throws the weights away; its loss, taken before, is finite.
DIVERGES: dict[str, Any] = {
    "epochs": 3,
    "opt": "sgd",
    "lr": 1e-12,
    "weight_decay": 1e10,
    "sched": "step",
    "sched_kwargs": {"decay_epochs": 2, "decay_rate": 1e42},
    "warmup_epochs": 0,
}


class TestWeights:
    def test_that_are_no_numbers_stop_the_run_and_keep_the_last_sound_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(
            tc.errors.TrainingError, match=r"epoch 3, step 3: expected finite weights, .*step-000000002; lower lr"
        ):
            train(tmp_path / "run", keep_checkpoints=1, **DIVERGES)
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000002"]
        assert not (tmp_path / "run" / "extractor-a").exists()
        lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]

    def test_are_looked_at_without_a_folder_too(self) -> None:
        with pytest.raises(tc.errors.TrainingError, match=r"epoch 3, .*last good checkpoint: none"):
            train(**DIVERGES)

    @pytest.mark.parametrize("part", ["extractor", "head"])
    def test_of_every_part_are_looked_at(self, part: str) -> None:
        broken: list[tc.Member] = []

        def validate() -> dict[str, float]:
            for parameter in getattr(broken[0], part).parameters():
                parameter.data.fill_(torch.nan)
            return {}

        data = tc.data.load_digits("train").subset(range(WHOLE))
        space = tc.CompatSpace(8, data.class_names, ["common_classes"])
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16)
        broken.append(tc.Member("a", extractor, tc.TaskHead(space, data.class_names), data))
        config = tc.TrainConfig(epochs=2, batch_size=WHOLE)
        with pytest.raises(
            tc.errors.TrainingError, match=r"step 1: expected finite weights|step 2: expected a finite loss"
        ):
            tc.fit(space, broken, config, validate=validate, progress=None)

    @pytest.mark.parametrize(("part", "epoch"), [("interface", 2), ("backbone", 3)])
    def test_of_an_adapter_are_looked_at_and_those_that_are_frozen_at_the_end(self, part: str, epoch: int) -> None:
        data = tc.data.load_digits("train").subset(range(WHOLE))
        space = tc.CompatSpace(8, data.class_names, ["common_classes"])
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16, trainable="adapter")

        class Break(tc.Callback):
            def on_step_end(self, step: int) -> None:
                if step == 2:
                    next(getattr(extractor, part).parameters()).data.fill_(torch.nan)

        member = tc.Member("a", extractor, tc.TaskHead(space, data.class_names), data)
        config = tc.TrainConfig(epochs=3, batch_size=WHOLE)
        with pytest.raises(tc.errors.TrainingError, match=f"epoch {epoch}, .*expected finite weights"):
            tc.fit(space, [member], config, callbacks=[Break()], progress=None)


class TestCallersAccelerator:
    def test_is_left_alone_before_and_after(self) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState

        for state in (AcceleratorState, GradientState):
            state._reset_state()
        own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
        try:
            train()
            assert own.mixed_precision == "bf16"
            assert own.state.mixed_precision == "bf16"
            assert own.gradient_accumulation_steps == 3
            with own.autocast():
                assert torch.is_autocast_enabled("cpu")
            with pytest.raises(tc.errors.TrainingError):
                train(**DIVERGES)
            assert own.mixed_precision == "bf16"
        finally:
            for state in (AcceleratorState, GradientState):
                state._reset_state()

    def test_may_be_made_afterwards_with_any_settings(self) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState

        for state in (AcceleratorState, GradientState):
            state._reset_state()
        train()
        try:
            assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"
        finally:
            for state in (AcceleratorState, GradientState):
                state._reset_state()


class TestOptimizer:
    @staticmethod
    def head_norm(optimizer: str, **settings: Any) -> float:
        _, (member,) = train(epochs=15, batch_size=32, opt=optimizer, weight_decay=0.0, **settings)
        return member.head.classifier.weight.norm().item()

    def test_default_decay_of_heads_is_as_strong_added_to_the_gradient_as_apart(self) -> None:
        apart = self.head_norm("sgdw", lr=0.05)
        assert self.head_norm("sgd", lr=0.05) == pytest.approx(apart, rel=0.5)

    def test_clip_grad_of_zero_is_off(self) -> None:
        results = [train(clip_grad=limit)[1][0].extractor.digest() for limit in (0, None, 1e-6)]
        assert results[0] == results[1] != results[2]

    def test_heads_decay_by_kind_and_what_timm_names_and_biases_not_at_all(self) -> None:
        data = tc.data.load_digits("train").subset(range(WHOLE))
        space = tc.CompatSpace(8, data.class_names, ["common_classes"])
        extractor = tc.create_extractor("test_vit", space, in_chans=1, img_size=32)
        member, model = tc.Member("a", extractor, tc.TaskHead(space, data.class_names), data), extractor.backbone.model
        assert {"pos_embed", "cls_token"} <= model.no_weight_decay()
        for name, of_heads in {"adamw": 5.0, "sgdw": 5.0, "lion": 5.0, "sgd": 0.5, "adam": 0.5, "nadam": 0.5}.items():
            config = tc.TrainConfig(weight_decay=0.3, opt=name)
            groups = create_optimizer(JointModule(space, [member], config), config).param_groups
            decays = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
            found = {name: decays[id(value)] for name, value in model.named_parameters()}
            assert found["pos_embed"] == found["cls_token"] == 0
            assert all(decay == 0 for name, decay in found.items() if name.endswith(".bias"))
            assert found["blocks.0.attn.qkv.weight"] == 0.3
            assert decays[id(member.head.classifier.weight)] == pytest.approx(of_heads), name


class TestContrastiveAlignment:
    @pytest.mark.parametrize(
        "settings",
        [
            {"batch_size": 4},
            {"batch_size": 32, "grad_accum_steps": 8},
            {"batch_size": 8, "alignment_fraction": 0.1},
        ],
    )
    @pytest.mark.parametrize("pooled", [False, True])
    def test_under_two_images_a_pass_is_refused(self, settings: dict[str, Any], pooled: bool) -> None:
        pool = tc.data.load_digits("train") if pooled else None
        with pytest.raises(
            tc.errors.ConfigError, match=r"at least 2 aligned images in every pass, .*got 1 .*alignment='l2'"
        ):
            train(members=2, alignment="contrastive", pool=pool, **settings)

    def test_every_pass_of_a_step_has_negatives(self) -> None:
        _, members = train(members=2)
        config = tc.TrainConfig(batch_size=32, alignment="contrastive", grad_accum_steps=4)
        joint = JointModule(members[0].extractor.space, members, config)
        labels = torch.zeros(32, dtype=torch.long)
        for step in range(5):
            for part in range(4):
                batch = Batch(torch.zeros(8, 1, 16, 16), labels[:8], labels)
                places, count = joint._draw_aligned({"a": batch}, Share(step, part, 4))["a"]
                assert len(places) == 2
                assert count == 8


class TestOneImageAPass:
    @pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 4, "grad_accum_steps": 4}])
    @pytest.mark.parametrize("normalization", ["batch", "layer"])
    def test_is_refused_where_batchnorm_cannot_take_it(self, settings: dict[str, int], normalization: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match=r"batch_size: expected at least 2 images in every pass"):
            train(normalization=normalization, **settings)  # the backbone's last maps are of one place

    def test_trains_where_nothing_is_normalised_over_the_batch(self) -> None:
        result, _ = train(backbone="test_vit", normalization="layer", batch_size=2, grad_accum_steps=2, epochs=3)
        first, *_, last = result.history
        assert last["loss"] < first["loss"]
