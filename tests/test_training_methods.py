"""Every method and option of training through ``fit``: what it adds to the loss, and what it must not touch."""

import copy
import math

import pytest
import torch

import timm_compat as tc
from timm_compat.training.feature_cache import Wanted, compute_features

FAST = {"epochs": 1, "batch_size": 64}
TASKS = ("rotation", "location", "flip")


def digits(count: int = 128, classes: str = "0123456789") -> tc.data.ArrayDataset:
    return tc.data.load_digits("train").of_classes(list(classes)).subset(range(count))


def make_space(methods=("common_classes",), normalization="batch", **arguments) -> tc.CompatSpace:
    return tc.CompatSpace(16, digits().class_names, methods, normalization=normalization, **arguments)


def make_member(
    space: tc.CompatSpace,
    name: str = "a",
    dataset: tc.data.ArrayDataset | None = None,
    model="test_resnet",
    **arguments,
) -> tc.Member:
    dataset = digits() if dataset is None else dataset
    torch.manual_seed(sum(map(ord, name)))
    settings = {"in_chans": 1, "img_size": 16, **arguments}
    extractor = tc.create_extractor(model, space, **settings)
    return tc.Member(name, extractor, tc.TaskHead(space, dataset.class_names), dataset)


def unlabelled(member: tc.Member) -> tc.Member:
    return tc.Member(member.name, member.extractor, None, member.dataset)


def weights(member: tc.Member) -> dict[str, torch.Tensor]:
    parts = {"extractor": member.extractor} | ({} if member.head is None else {"head": member.head})
    return {
        f"{part}.{key}": value.clone() for part, module in parts.items() for key, value in module.state_dict().items()
    }


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 1e-4) -> bool:
    return all(torch.allclose(first[name], second[name], rtol=0, atol=tolerance) for name in first)


def count_images(member: tc.Member) -> list[int]:
    counted: list[int] = []
    member.extractor.backbone.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    return counted


def old_network(methods=("common_classes",), classes: str = "0123456") -> tuple[tc.CompatSpace, tc.Reference]:
    space = make_space(methods)
    member = make_member(space, "old", digits(classes=classes))
    tc.fit(space, [member], tc.TrainConfig(epochs=4, batch_size=32), progress=None)
    return space, tc.Reference(member.extractor, member.head)


def by_chance(choices: int):
    """About the loss of a guess among so many answers, as in the first steps."""
    return pytest.approx(math.log(choices), rel=0.4)


class TestAlignment:
    @pytest.mark.parametrize("kind", ["l2", "contrastive"])
    def test_between_members(self, kind) -> None:
        space = make_space(())
        members = [make_member(space, "a", digits(classes="01234")), make_member(space, "b", digits(100, "56789"))]
        result = tc.fit(space, members, tc.TrainConfig(**FAST, alignment=kind), progress=None)
        assert {"a/alignment", "b/alignment"} <= result.history[0].keys()
        assert space.is_final
        assert space.reference == members[0].extractor.digest()

    @pytest.mark.slow
    def test_makes_features_of_one_image_equal(self) -> None:
        distances = []
        for kind in ("none", "l2"):
            space = make_space(())
            members = [make_member(space, "a"), make_member(space, "b")]
            settings = {"alignment": kind, "alignment_weight": 3.0, "alignment_fraction": 1.0, "lr": 5e-3}
            tc.fit(space, members, tc.TrainConfig(epochs=15, batch_size=32, **settings), progress=None)
            a, b = (tc.extract_features(member.extractor, digits()) for member in members)
            distances.append((a - b).square().mean().item())
        assert distances[1] < 0.5 * distances[0]

    def test_three_members_take_turns(self) -> None:
        space = make_space(())
        members = [make_member(space, name) for name in "abc"]
        result = tc.fit(space, members, tc.TrainConfig(**FAST, alignment="l2"), progress=None)
        losses = [result.history[0][f"{name}/alignment"] for name in "abc"]
        assert max(losses) < 3 * min(losses)  # each is taught by both others

    def test_on_a_pool_whose_labels_are_not_looked_at(self) -> None:
        results = []
        for labels in (0, 1):
            space = make_space(())
            members = [make_member(space, "a"), make_member(space, "b")]
            images = tc.data.load_digits("test").images
            pool = tc.data.ArrayDataset(images, torch.full((len(images),), labels), ("x", "y"))
            config = tc.TrainConfig(**FAST, alignment="contrastive")
            tc.fit(space, members, config, pool=pool, progress=None)
            results.append(weights(members[0]))
        assert close(*results, tolerance=0)

    def test_to_a_frozen_reference(self) -> None:
        space, reference = old_network()
        before = copy.deepcopy(reference.extractor.state_dict())
        reference.extractor.train()
        member = make_member(space, "new", model="test_efficientnet")
        config = tc.TrainConfig(**{**FAST, "epochs": 2}, alignment="l2")
        result = tc.fit(space, [member], config, reference=reference, progress=None)
        losses = [record["new/alignment"] for record in result.history]
        assert losses == sorted(losses, reverse=True)
        assert all(torch.equal(value, before[name]) for name, value in reference.extractor.state_dict().items())
        assert reference.extractor.training
        assert all(parameter.grad is None for parameter in reference.extractor.parameters())

    def test_fraction_decides_how_many_images_count(self, monkeypatch) -> None:
        seen = []
        from timm_compat.training import terms

        original = terms.l2_losses
        monkeypatch.setattr(terms, "l2_losses", lambda z, t: (seen.append(len(z)), original(z, t))[1])
        space = make_space(())
        members = [make_member(space, "a"), make_member(space, "b")]
        tc.fit(space, members, tc.TrainConfig(**FAST, alignment="l2", alignment_fraction=0.5), progress=None)
        assert set(seen) == {32}


class TestOldHead:
    def test_influence_and_distillation_of_an_old_network(self) -> None:
        space, reference = old_network()
        member = make_member(space, "new", digits(classes="3456789"))
        before = copy.deepcopy(reference.head.state_dict())
        config = tc.TrainConfig(**FAST, influence_weight=1.0, distillation_weight=0.5)
        record = tc.fit(space, [member], config, reference=reference, progress=None).history[0]
        # A new network's features say nothing yet: as bad as a guess among the old head's ten classes, or worse.
        assert record["new/influence"] > 0.5 * math.log(10)
        assert record["new/distillation"] > 1e-5  # and the old head is nearly as unsure: little to distil
        assert all(torch.equal(value, before[name]) for name, value in reference.head.state_dict().items())
        assert all(parameter.grad is None for parameter in reference.head.parameters())

    @pytest.mark.slow
    def test_influence_pulls_new_features_under_the_old_head(self) -> None:
        accuracies = []
        for weight in (0.0, 1.0):
            space = make_space(())
            old = make_member(space, "old", digits(300))
            tc.fit(space, [old], tc.TrainConfig(epochs=8, batch_size=32), progress=None)
            space.finalize(reference=old.extractor.digest())
            new = make_member(space, "new", digits(300))
            reference = tc.Reference(old.extractor, old.head) if weight else None
            config = tc.TrainConfig(epochs=8, batch_size=32, influence_weight=weight)
            tc.fit(space, [new], config, reference=reference, progress=None)
            matrix = tc.recombination_matrix({"new": new.extractor}, {"old": old.head}, tc.data.load_digits("test"))
            accuracies.append(matrix.accuracy[0, 0])
        assert accuracies[0] < 0.4 < 0.8 < accuracies[1]


class TestSelfSupervisedTasks:
    def test_all_four_rotations_of_every_image(self) -> None:
        space = make_space(["rotation"])
        config = tc.TrainConfig(**FAST, self_supervised_fraction=1.0, self_supervised_all=True)
        assert tc.fit(space, [make_member(space)], config, progress=None).history[0]["a/rotation"] == by_chance(4)

    def test_all_tasks_share_one_pass(self) -> None:
        space = make_space(TASKS)
        member = make_member(space)
        counted = count_images(member)
        config = tc.TrainConfig(**FAST, self_supervised_fraction=0.5, self_supervised_all=True)
        record = tc.fit(space, [member], config, progress=None).history[0]
        assert counted == [64 + 32 * (4 + 4 + 2)] * 2
        assert {name for name in record if name.startswith("a/")} == {"a/task", *(f"a/{task}" for task in TASKS)}
        total = record["a/task"] + config.self_supervised_weight * sum(record[f"a/{task}"] for task in TASKS)
        assert record["loss"] == pytest.approx(total, rel=1e-5)

    @pytest.mark.parametrize(
        "task", ["rotation", *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS if task != "rotation")]
    )
    def test_the_shared_head_learns_to_tell(self, task: str) -> None:
        space = make_space([task])
        member = unlabelled(make_member(space, dataset=digits(256)))
        config = tc.TrainConfig(epochs=8, batch_size=64, self_supervised_fraction=1.0, self_supervised_weight=1.0)
        history = tc.fit(space, [member], config, progress=None).history
        assert history[-1][f"a/{task}"] < 0.7 * history[0][f"a/{task}"]

    def test_the_loss_reaches_extractor_and_shared_heads(self) -> None:
        space = make_space(TASKS)
        member, start = unlabelled(make_member(space)), {name: value.clone() for name, value in space.shared.items()}
        before = weights(member)
        tc.fit(space, [member], tc.TrainConfig(**FAST), progress=None)
        assert start.keys() == {f"{task}.{part}" for task in TASKS for part in ("weight", "bias")}
        assert not any(torch.equal(space.shared[name], value) for name, value in start.items())
        assert not close(before, weights(member))

    def test_further_tasks_leave_the_draws_of_rotation_alone(self) -> None:
        first = [
            tc.fit(
                space := make_space(methods, "layer"),
                [make_member(space, model="test_vit")],
                tc.TrainConfig(epochs=1, batch_size=128),
                progress=None,
            ).history[0]["a/rotation"]
            for methods in (("rotation",), TASKS)
        ]
        assert first[0] == pytest.approx(first[1], rel=1e-5)

    def test_a_trained_space_is_saved_and_serves_a_later_member(self, tmp_path) -> None:
        space = make_space(TASKS)
        tc.fit(space, [make_member(space)], tc.TrainConfig(**FAST), progress=None)
        loaded = tc.CompatSpace.from_pretrained(space.save_pretrained(tmp_path / "space"))
        assert loaded.fingerprint == space.fingerprint
        assert "flip, location, rotation" in loaded.card()
        later = make_member(loaded, "b")
        record = tc.fit(loaded, [later], tc.TrainConfig(**FAST), progress=None).history[0]
        choices = {"rotation": 4, "location": 4, "flip": 2}
        assert {task: record[f"b/{task}"] for task in TASKS} == {task: by_chance(choices[task]) for task in TASKS}
        assert all(torch.equal(loaded.shared[name], value) for name, value in space.shared.items())

    def test_a_member_with_nothing_to_learn_is_told_the_tasks(self) -> None:
        space = make_space(TASKS)
        config = tc.TrainConfig(**FAST, self_supervised_fraction=0.0)
        with pytest.raises(
            tc.errors.ConfigError, match=r"self-supervised tasks \(rotation, location, flip\) or alignment"
        ):
            tc.fit(space, [unlabelled(make_member(space))], config, progress=None)

    def test_member_without_labels(self) -> None:
        space = make_space(["common_classes", "rotation"])
        members = [make_member(space, "a"), unlabelled(make_member(space, "b", digits(100)))]
        before = weights(members[1])
        record = tc.fit(space, members, tc.TrainConfig(**FAST), progress=None).history[0]
        assert {name for name in record if name.startswith("b/")} == {"b/rotation"}
        assert not close(before, weights(members[1]))

    def test_labels_of_such_a_member_are_not_looked_at(self) -> None:
        results = []
        for shift in (0, 1):
            space = make_space(["common_classes", "rotation"])
            dataset = digits(100)
            strange = tc.data.ArrayDataset(dataset.images, (dataset.labels + shift) % 10, tuple("pqrstuvwxy"))
            members = [make_member(space, "a"), unlabelled(make_member(space, "b", strange))]
            tc.fit(space, members, tc.TrainConfig(**FAST), progress=None)
            results.append(weights(members[1]))
        assert close(*results, tolerance=0)


class TestAdapters:
    @pytest.mark.parametrize("methods", [("common_classes",), ("common_classes", "rotation"), TASKS, ()])
    def test_cached_features_train_as_images_do(self, methods) -> None:
        results = []
        for cached in (True, False):
            space = make_space(methods)
            first, second = digits(100, "0123456"), digits(120, "3456789")
            members = [
                make_member(space, "a", first, trainable="adapter"),
                make_member(space, "b", second, "test_efficientnet", trainable="adapter", img_size=32),
            ]
            config = tc.TrainConfig(epochs=2, batch_size=32, cache_features=cached, alignment="l2")
            history = tc.fit(space, members, config, progress=None).history
            # The projection's bias has no gradient before BatchNorm: there Adam makes steps of rounding.
            no_matter = ("projection.bias", "normalization.running_mean")
            learned = {name: value for name, value in weights(members[0]).items() if not name.endswith(no_matter)}
            results.append((learned, history))
        assert close(results[0][0], results[1][0], tolerance=2e-3)
        assert results[0][1][-1]["loss"] == pytest.approx(results[1][1][-1]["loss"], rel=1e-3)

    def test_backbone_sees_every_image_once(self) -> None:
        space = make_space(())
        dataset = digits(100)
        members = [make_member(space, name, dataset, trainable="adapter") for name in "ab"]
        counts = [count_images(member) for member in members]
        tc.fit(space, members, tc.TrainConfig(epochs=3, batch_size=32, alignment="l2"), progress=None)
        assert [sum(seen) for seen in counts] == [100, 100]

    def test_backbone_sees_every_change_once(self) -> None:
        space = make_space(TASKS)
        member = make_member(space, dataset=digits(100), trainable="adapter")
        counted = count_images(member)
        tc.fit(space, [member], tc.TrainConfig(epochs=3, batch_size=32), progress=None)
        assert sum(counted) == 100 * (1 + 3 + 4 + 1)

    def test_cache_folder_serves_later_runs_and_mends_damage(self, tmp_path) -> None:
        results = []
        for damage in (False, False, True):
            for file in tmp_path.glob("*") if damage else ():
                file.write_bytes(file.read_bytes()[:100])
            space = make_space()
            member = make_member(space, trainable="adapter")
            counted = count_images(member)
            tc.fit(space, [member], tc.TrainConfig(**FAST, cache_dir=tmp_path), progress=None)
            results.append((sum(counted), weights(member)))
        assert [seen for seen, _ in results] == [128, 0, 128]
        assert close(results[0][1], results[1][1], tolerance=0)
        assert all(file.suffix == ".safetensors" for file in tmp_path.iterdir())

    def test_other_weights_or_images_are_other_features_and_a_part_is_none(self, tmp_path) -> None:
        space, seen = make_space(), []
        whole, more = digits(128), digits(160)
        mixed = more.subset([3, 150, 3, 7])
        for name, images in (("a", whole), ("b", whole), ("a", whole.subset([90, 3, 3])), ("a", mixed), ("a", more)):
            member = make_member(space, name, images, trainable="adapter")
            counted = count_images(member)
            tc.fit(space, [member], tc.TrainConfig(**FAST, cache_dir=tmp_path), progress=None)
            seen.append(sum(counted))
        assert seen == [128, 128, 0, 1, 31]

    def test_kept_features_are_those_of_their_images(self, tmp_path) -> None:
        extractor = make_member(make_space(), trainable="adapter").extractor
        images = digits(40)
        for part in (images.subset([5, 9, 30]), images.subset([39, 9, 0, 9]), images):
            (kept,) = compute_features(part, {"a": Wanted(extractor)}, tmp_path).values()
            (fresh,) = compute_features(part, {"a": Wanted(extractor)}).values()
            torch.testing.assert_close(kept, fresh)

    def test_to_a_reference_on_a_pool(self) -> None:
        space, reference = old_network()
        member = make_member(space, "new", digits(classes="789"), "test_efficientnet", trainable="adapter")
        arguments = {"reference": reference, "pool": tc.data.load_digits("test"), "progress": None}
        settings = {"epochs": 4, "batch_size": 64, "alignment": "l2", "alignment_weight": 3.0, "lr": 1e-2}
        result = tc.fit(space, [member], tc.TrainConfig(**settings), **arguments)
        losses = [record["new/alignment"] for record in result.history]
        assert losses[-1] < 0.95 * losses[0]


class TestOptions:
    def result_of(self, model="test_vit", normalization="layer", **settings) -> tuple[dict[str, torch.Tensor], list]:
        space = make_space(("common_classes", "rotation"), normalization)
        member = make_member(space, "a", digits(128, "0123456"), model)
        config = tc.TrainConfig(**{**FAST, "opt": "sgd", "lr": 0.1, **settings})
        history = tc.fit(space, [member], config, progress=None).history
        return weights(member), history

    def test_accumulated_parts_equal_one_batch(self) -> None:
        whole, parts = (self.result_of(grad_accum_steps=count) for count in (1, 4))
        assert close(whole[0], parts[0], tolerance=1e-5)
        assert parts[1][0]["loss"] == pytest.approx(whole[1][0]["loss"], rel=1e-5)

    def test_clipping_limits_the_step(self) -> None:
        start = weights(make_member(make_space((), "layer"), "a", digits(128, "0123456"), "test_vit"))
        moved = []
        for limit in (None, 1e-4):
            after, _ = self.result_of(clip_grad=limit, weight_decay=0.0, head_weight_decay=0.0)
            moved.append(sum((after[name] - start[name]).square().sum().item() for name in start) ** 0.5)
        assert moved[1] < 1e-3 * moved[0]

    def test_average_is_the_result(self) -> None:
        plain, averaged = self.result_of(epochs=3), self.result_of(epochs=3, model_ema_decay=0.9)
        assert not close(plain[0], averaged[0])

    @pytest.mark.parametrize("scheduler", ["cosine", "tanh", "step", "poly", "none"])
    def test_schedules_of_timm(self, scheduler) -> None:
        rates = [record["lr"] for record in self.result_of(epochs=3, sched=scheduler)[1]]
        assert len(rates) == 3
        assert rates[-1] <= rates[0]

    @pytest.mark.parametrize("optimizer", ["adamw", "lamb", "nadamw", "lion"])
    def test_optimisers_of_timm(self, optimizer) -> None:
        first, *_, last = self.result_of(opt=optimizer, lr=1e-3, epochs=4)[1]
        assert last["a/task"] < first["a/task"]

    def test_channels_last_changes_layout_only(self) -> None:
        plain, last = (self.result_of("test_resnet", channels_last=value) for value in (False, True))
        assert close(plain[0], last[0], tolerance=1e-3)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own parts
    def test_compiled_extractors_give_the_same(self) -> None:
        plain, compiled = (self.result_of(compile=value) for value in (False, True))
        assert close(plain[0], compiled[0], tolerance=1e-3)

    def test_best_epoch_is_kept(self) -> None:
        space = make_space()
        member = make_member(space)
        kept = []

        def validate() -> dict[str, float]:
            kept.append(weights(member))
            return {"score": [0.1, 0.9, 0.5][len(kept) - 1]}

        config = tc.TrainConfig(**{**FAST, "epochs": 3}, best_metric="score")
        tc.fit(space, [member], config, validate=validate, progress=None)
        assert close(kept[1], weights(member), tolerance=0)

    def test_trackers_of_accelerate(self, tmp_path) -> None:
        space = make_space()
        config = tc.TrainConfig(**FAST, output_dir=tmp_path / "run", log_with=("tensorboard",))
        tc.fit(space, [make_member(space)], config, progress=None)
        assert list((tmp_path / "run").rglob("events.out.tfevents*"))


class TestContradictions:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"alignment": "l2"}, "second member or a reference"),
            ({"influence_weight": 1.0}, "influence_weight: expected a reference with a head"),
            ({"distillation_weight": 1.0}, "distillation_weight: expected a reference with a head"),
            ({"grad_accum_steps": 3}, "divisor of batch_size"),
            ({"sched": "plateau"}, "follows the step"),
            ({"sched": "cosinus"}, "timm knows"),
            ({"sched_kwargs": {"min": 1}}, "timm knows"),
            ({"opt_kwargs": {"nonsense": 1}}, "timm knows"),
            ({"best_metric": "accuracy"}, "best_metric"),
            ({"log_with": ("nonsense",)}, "log_with: expected any of tensorboard, wandb"),
        ],
    )
    def test_settings(self, settings, message) -> None:
        space = make_space()
        with pytest.raises(tc.errors.CompatError, match=message):
            tc.fit(space, [make_member(space)], tc.TrainConfig(**{**FAST, **settings}), progress=None)

    def test_reference_and_pool_that_nothing_uses(self) -> None:
        space, reference = old_network()
        member = make_member(space, "new")
        with pytest.raises(tc.errors.ConfigError, match="reference: expected"):
            tc.fit(space, [member], tc.TrainConfig(**FAST), reference=reference, progress=None)
        with pytest.raises(tc.errors.ConfigError, match="pool: expected"):
            tc.fit(space, [member], tc.TrainConfig(**FAST), pool=digits(), progress=None)

    def test_reference_of_another_space(self) -> None:
        _, reference = old_network()
        space = make_space(())
        config = tc.TrainConfig(**FAST, alignment="l2")
        with pytest.raises(tc.errors.SpaceMismatchError, match="reference"):
            tc.fit(space, [make_member(space)], config, reference=reference, progress=None)

    def test_member_with_nothing_to_learn(self) -> None:
        space = make_space()
        with pytest.raises(tc.errors.ConfigError, match="has no head"):
            tc.fit(space, [make_member(space, "a"), unlabelled(make_member(space, "b"))], tc.TrainConfig(**FAST))
