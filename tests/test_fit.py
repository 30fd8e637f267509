"""Joint training: what it changes, what it leaves alone, and that a seed decides it."""

import json

import pytest
import torch

import timm_compat as tc

FAST = {"epochs": 1, "batch_size": 128, "random_crop": 1}


def digits(count: int = 256) -> tc.data.ArrayDataset:
    return tc.data.load_digits("train").subset(range(count))


def make_members(space: tc.CompatSpace, datasets: dict[str, tc.data.ArrayDataset], **arguments) -> list[tc.Member]:
    torch.manual_seed(0)
    return [
        tc.Member(
            name,
            tc.create_extractor("test_resnet", space, in_chans=1, img_size=16, **arguments),
            tc.TaskHead(space, dataset.class_names),
            dataset,
        )
        for name, dataset in datasets.items()
    ]


def make_space(methods=("common_classes", "rotation"), **arguments) -> tc.CompatSpace:
    return tc.CompatSpace(16, digits().class_names, methods, **arguments)


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before: dict[str, torch.Tensor], module: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class TestJointTraining:
    def test_trains_every_part_and_finalises_the_space(self) -> None:
        space = make_space()
        initial = {name: tensor.clone() for name, tensor in space.shared.items()}
        members = make_members(space, {"a": digits(), "b": digits()})
        before = [(snapshot(member.extractor), snapshot(member.head)) for member in members]
        result = tc.fit(space, members, tc.TrainConfig(**FAST))
        assert space.is_final
        assert not any(torch.equal(space.shared[name], initial[name]) for name in initial)
        assert not any(
            same(old[0], new.extractor) or same(old[1], new.head) for old, new in zip(before, members, strict=True)
        )
        assert not any(member.extractor.training or member.head.training for member in members)
        record = result.history[0]
        assert {
            "loss",
            "a/task",
            "a/rotation",
            "b/common_classes",
            "epoch",
            "seconds",
            "lr",
        } <= record.keys()

    def test_loss_goes_down(self) -> None:
        space = make_space()
        result = tc.fit(space, make_members(space, {"a": digits()}), tc.TrainConfig(epochs=15, batch_size=32, lr=5e-3))
        assert result.history[-1]["a/task"] < 0.5 * result.history[0]["a/task"]

    @pytest.mark.parametrize(
        "methods", [("rotation",), ("simplex",), ("initial_weights",), ("common_classes", "simplex")]
    )
    def test_every_method_alone_and_together(self, methods) -> None:
        space = make_space(methods)
        result = tc.fit(space, make_members(space, {"a": digits(), "b": digits()}), tc.TrainConfig(**FAST))
        assert space.is_final
        assert {f"a/{method}" for method in methods if method != "initial_weights"} <= result.history[0].keys()

    def test_members_of_other_classes_and_sizes(self) -> None:
        space = make_space(["common_classes"])
        datasets = {"a": digits(256).of_classes(list("0123456")), "b": digits(100).of_classes(list("9876543"))}
        tc.fit(space, make_members(space, datasets), tc.TrainConfig(**FAST))
        assert space.is_final

    def test_space_that_nothing_pins_stays_a_draft(self) -> None:
        space = make_space(())
        members = make_members(space, {"a": digits()})
        tc.fit(space, members, tc.TrainConfig(**FAST))
        assert not space.is_final
        space.finalize(reference=members[0].extractor.digest())
        assert len(space.fingerprint) == 16

    def test_final_space_keeps_its_shared_parts_and_fingerprint(self) -> None:
        space = make_space().finalize()
        fingerprint, shared = space.fingerprint, {name: tensor.clone() for name, tensor in space.shared.items()}
        tc.fit(space, make_members(space, {"late": digits()}), tc.TrainConfig(**FAST))
        assert space.fingerprint == fingerprint
        assert all(torch.equal(space.shared[name], shared[name]) for name in shared)

    def test_adapter_members_keep_their_backbone(self) -> None:
        space = make_space()
        members = make_members(space, {"a": digits()}, trainable="adapter")
        before, interface = snapshot(members[0].extractor.backbone), snapshot(members[0].extractor.interface)
        tc.fit(space, members, tc.TrainConfig(**FAST))
        assert same(before, members[0].extractor.backbone)
        assert not same(interface, members[0].extractor.interface)

    def test_same_seed_same_result_whatever_came_before(self) -> None:
        digests = []
        for seed in (0, 0, 1):
            space = make_space()
            members = make_members(space, {"a": digits(), "b": digits(100)}, drop_rate=0.2)
            torch.rand(len(digests) + 1)
            tc.fit(space, members, tc.TrainConfig(**FAST, seed=seed))
            digests.append((space.fingerprint, members[0].extractor.digest()))
        assert digests[0] == digests[1] != digests[2]

    def test_leaves_the_callers_random_state_alone(self) -> None:
        space = make_space()
        members = make_members(space, {"a": digits()})
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        tc.fit(space, members, tc.TrainConfig(**FAST))
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.slow
    def test_precision_is_each_runs_own(self) -> None:
        losses = []
        for precision in ("no", "bf16", "no", "fp16"):
            space = make_space()
            members = make_members(space, {"a": digits()})
            losses.append(tc.fit(space, members, tc.TrainConfig(**FAST, mixed_precision=precision)).history[0]["loss"])
            assert next(members[0].extractor.parameters()).dtype == torch.float32
        assert losses[0] == losses[2] != losses[1]
        assert losses[1] == pytest.approx(losses[0], rel=0.1)
        assert losses[3] == pytest.approx(losses[0], rel=0.1)

    def test_validate_enters_the_history(self) -> None:
        space = make_space()
        members = make_members(space, {"a": digits()})
        result = tc.fit(space, members, tc.TrainConfig(**FAST), validate=lambda: {"accuracy": 0.5})
        assert result.history[0]["accuracy"] == 0.5

    def test_saves_components_that_load(self, tmp_path) -> None:
        space = make_space()
        members = make_members(space, {"a": digits()})
        tc.fit(space, members, tc.TrainConfig(**FAST, output_dir=tmp_path / "run"))
        model = tc.compose(
            tc.CompatExtractor.from_pretrained(tmp_path / "run" / "extractor-a"),
            tc.TaskHead.from_pretrained(tmp_path / "run" / "head-a"),
        )
        images = members[0].extractor.preprocess(digits(8).images)
        assert torch.equal(model(images), tc.compose(members[0].extractor, members[0].head)(images))
        assert tc.CompatSpace.from_pretrained(tmp_path / "run" / "space").fingerprint == space.fingerprint
        assert len([json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]) == 1


class TestBadInput:
    def test_members(self) -> None:
        space = make_space()
        member, other = make_members(space, {"a": digits(), "b": digits()})
        twin = tc.Member("a", other.extractor, other.head, other.dataset)
        with pytest.raises(tc.errors.ConfigError, match="'a' twice"):
            tc.fit(space, [member, twin])
        with pytest.raises(tc.errors.ConfigError, match="at least one"):
            tc.fit(space, [])
        with pytest.raises(tc.errors.ConfigError, match="letters, digits"):
            tc.fit(space, [tc.Member("../a", member.extractor, member.head, member.dataset)])

    def test_parts_of_another_space(self) -> None:
        space, other = make_space(), make_space(["rotation"])
        (member,), (stranger,) = make_members(space, {"a": digits()}), make_members(other, {"a": digits()})
        with pytest.raises(tc.errors.SpaceMismatchError, match="extractor of member 'a'"):
            tc.fit(space, [tc.Member("a", stranger.extractor, member.head, member.dataset)])
        with pytest.raises(tc.errors.SpaceMismatchError, match="head of member 'a'"):
            tc.fit(space, [tc.Member("a", member.extractor, stranger.head, member.dataset)])

    def test_data_sets(self) -> None:
        space = make_space()
        (member,) = make_members(space, {"a": digits()})
        for dataset, message in [(digits().subset([]), "empty"), (digits().of_classes(["0", "1"]), "one of them only")]:
            with pytest.raises(tc.errors.DataError, match=message):
                tc.fit(space, [tc.Member("a", member.extractor, member.head, dataset)])
        strange = tc.data.ArrayDataset(digits(4).images, torch.zeros(4, dtype=torch.int64), ("x",))
        with pytest.raises(tc.errors.ConfigError, match="common_classes needs a class"):
            tc.fit(space, make_members(space, {"a": strange}))

    def test_loss_that_is_not_finite_names_step_and_part(self) -> None:
        space = make_space()
        (member,) = make_members(space, {"a": digits()})
        with torch.no_grad():
            member.head.classifier.bias.fill_(float("nan"))
        with pytest.raises(tc.errors.TrainingError, match=r"step 1: .* task = nan of member .a."):
            tc.fit(space, [member], tc.TrainConfig(**FAST))
        assert not space.is_final

    def test_output_folder_that_exists_is_refused_before_training(self, tmp_path) -> None:
        (tmp_path / "mine.txt").write_text("keep")
        space = make_space()
        members = make_members(space, {"a": digits()})
        before = snapshot(members[0].extractor)
        with pytest.raises(tc.errors.OutputExistsError):
            tc.fit(space, members, tc.TrainConfig(**FAST, output_dir=tmp_path))
        assert same(before, members[0].extractor)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize(
        "setting",
        [
            {"epochs": 0},
            {"epochs": 1.5},
            {"epochs": True},
            {"batch_size": -1},
            {"lr": float("nan")},
            {"lr": float("inf")},
            {"head_weight_decay": -1},
            {"self_supervised_fraction": 1.1},
            {"mixed_precision": "int8"},
            {"random_crop": "4"},
        ],
    )
    def test_settings(self, setting) -> None:
        with pytest.raises(tc.errors.ConfigError, match=next(iter(setting))):
            tc.TrainConfig(**setting)

    def test_unknown_optimizer(self) -> None:
        space = make_space()
        with pytest.raises(tc.errors.ConfigError, match="opt:"):
            tc.fit(space, make_members(space, {"a": digits()}), tc.TrainConfig(**FAST, opt="nonsense"))
