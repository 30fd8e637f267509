"""Heads: task heads of any depth, the auxiliary heads of a space, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import timm_compat as tc

D = 8
NAMES = ("cat", "dog", "owl")
METHODS = ("common_classes", "flip", "location", "rotation", "simplex")


def space(level: str = "pooled", **settings: Any) -> tc.CompatSpace:
    return tc.CompatSpace(D, NAMES, settings.pop("methods", METHODS), level=level, **settings)


def features(level: str = "pooled", batch: int = 5) -> Tensor:
    return torch.randn(batch, D, *((3, 4) if level == "map" else ()), generator=torch.Generator().manual_seed(0))


def filled(head: tc.TaskHead) -> tc.TaskHead:
    """The head with weights and statistics that no fresh one has."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    head.train()(features(head.space.level))
    return head.eval()


@pytest.mark.parametrize("level", ["pooled", "map"])
@pytest.mark.parametrize("depth", [1, 2, 3])
class TestTaskHead:
    def test_logits_and_gradients(self, level: str, depth: int) -> None:
        head = tc.TaskHead(space(level), ["a", "b", "c", "d"], depth=depth)
        inputs = features(level).requires_grad_()
        logits = filled(head).train()(inputs)
        assert logits.shape == (5, head.num_classes) == (5, 4)
        logits.square().sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.abs().sum() > 0
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_is_linear_at_depth_one_only(self, level: str, depth: int) -> None:
        head = filled(tc.TaskHead(space(level), NAMES, depth=depth))
        one, other, both = (head(value) for value in (features(level), -features(level), 0 * features(level)))
        assert head.is_linear == (depth == 1)
        assert torch.allclose(one + other, 2 * both, atol=1e-5) == (depth == 1)

    def test_every_step_counts(self, level: str, depth: int) -> None:
        sizes = [sum(p.numel() for p in tc.TaskHead(space(level), NAMES, depth=n).parameters()) for n in range(1, 4)]
        step = 2 * (9 * D * D + 2 * D) if level == "map" else D * D + D
        assert sizes[depth - 1] == (D + 1) * len(NAMES) + (depth - 1) * step

    def test_dropout_acts_in_training_only(self, level: str, depth: int) -> None:
        head = filled(tc.TaskHead(space(level), NAMES, depth=depth, drop_rate=0.5))
        assert torch.equal(head(features(level)), head(features(level)))
        head.train()
        assert not torch.equal(head(features(level)), head(features(level)))

    def test_round_trip(self, level: str, depth: int, tmp_path: Path) -> None:
        final = space(level).finalize()
        head = filled(tc.TaskHead(final, NAMES, depth=depth, drop_rate=0.25))
        loaded = tc.TaskHead.from_pretrained(head.save_pretrained(tmp_path / "head"))
        assert not loaded.training
        assert torch.equal(loaded(features(level)), head(features(level)))
        assert loaded.class_names == NAMES
        assert (loaded.depth, loaded.drop_rate) == (depth, 0.25)
        assert loaded.space.differences(final) == []
        assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())
        other = tc.TaskHead(final, NAMES, depth=depth)
        other.load_state_dict(loaded.state_dict())
        assert torch.equal(other.eval()(features(level)), head(features(level)))


class TestTaskHeadSettings:
    def test_a_linear_head_is_the_published_formula(self) -> None:
        head = filled(tc.TaskHead(space(), NAMES))
        weight, bias = head.classifier.weight, head.classifier.bias
        torch.testing.assert_close(head(features()), features() @ weight.T + bias)
        mapped = filled(tc.TaskHead(space("map"), NAMES))
        pooled = features("map").mean(dim=(2, 3))
        expected = pooled @ mapped.classifier.weight.T + mapped.classifier.bias
        torch.testing.assert_close(mapped(features("map")), expected)

    def test_a_fresh_head_prefers_no_class(self) -> None:
        logits = tc.TaskHead(space(), NAMES, depth=2)(features())
        assert torch.equal(logits, torch.zeros(5, 3))

    def test_hidden_dim_sets_the_width(self, tmp_path: Path) -> None:
        head = filled(tc.TaskHead(space().finalize(), NAMES, depth=3, hidden_dim=20))
        assert head.classifier.in_features == 20
        loaded = tc.TaskHead.from_pretrained(head.save_pretrained(tmp_path / "head"))
        assert loaded.hidden_dim == 20
        assert torch.equal(loaded(features()), head(features()))

    def test_hidden_dim_does_not_change_a_linear_head(self) -> None:
        assert tc.TaskHead(space(), NAMES, hidden_dim=20)(features()).shape == (5, 3)

    def test_one_class_is_enough(self) -> None:
        assert tc.TaskHead(space(), ["only"])(features()).shape == (5, 1)

    def test_names_keep_their_order(self, tmp_path: Path) -> None:
        names = ["zebra", "ant", "Fuß", "猫", "a|b"]
        folder = tc.TaskHead(space().finalize(), names).save_pretrained(tmp_path / "head")
        assert tc.TaskHead.from_pretrained(folder).class_names == tuple(names)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["timm_compat"]["class_names"] == names
        assert config["timm_compat"]["role"] == "head"

    def test_of_a_draft_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(tc.errors.DraftSpaceError, match="finalize"):
            tc.TaskHead(space(), NAMES).save_pretrained(tmp_path / "head")
        assert not any(tmp_path.iterdir())

    def test_an_existing_folder_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "mine").touch()
        with pytest.raises(tc.errors.OutputExistsError):
            tc.TaskHead(space().finalize(), NAMES).save_pretrained(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["mine"]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            *[({"depth": value}, "depth: expected an integer") for value in (0, -1, 17, 1.0, True, "2")],
            *[({"hidden_dim": value}, "hidden_dim: expected an integer") for value in (0, -3, 2.5, "8", 10**9)],
            *[({"drop_rate": value}, "drop_rate: expected a number") for value in (1, -0.1, 1.5, "0", None, True)],
            ({"drop_rate": float("nan")}, "drop_rate: expected a number from 0"),
        ],
    )
    def test_out_of_range(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match=message):
            tc.TaskHead(space(), NAMES, **settings)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "expected 1 to 1000000 names, got 0"),
            (["a", ""], "expected a non-empty string at position 1, got ''"),
            (["a", " \t"], "expected a non-empty string at position 1"),
            (["a", 3], "expected a non-empty string at position 1, got 3"),
            (["a", "b", "a"], "expected every name once, got 'a' twice"),
            ("abc", "expected a list of names, got 'abc'"),
            (3, "expected a list of names, got 3"),
            (None, "expected a list of names, got None"),
        ],
    )
    def test_class_names(self, names: Any, message: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match=f"class_names: {message}"):
            tc.TaskHead(space(), names)

    def test_a_residual_block_keeps_the_dimension(self) -> None:
        with pytest.raises(tc.errors.ConfigError, match=f"hidden_dim: residual blocks keep D = {D}, got 16"):
            tc.TaskHead(space("map"), NAMES, depth=2, hidden_dim=16)

    @pytest.mark.parametrize("wrong", [None, D, "space"])
    def test_no_space(self, wrong: Any) -> None:
        with pytest.raises(tc.errors.ConfigError, match="space: expected a CompatSpace"):
            tc.TaskHead(wrong, NAMES)


@pytest.mark.parametrize("level", ["pooled", "map"])
@pytest.mark.parametrize(
    ("name", "outputs"), [("rotation", 4), ("location", 4), ("flip", 2), ("common_classes", 3), ("simplex", D + 1)]
)
class TestAuxiliaryHeads:
    def test_is_the_spaces_linear_map_of_pooled_features(self, name: str, outputs: int, level: str) -> None:
        shared = space(level)
        logits = tc.AuxiliaryHead(shared, name)(features(level))
        assert logits.shape == (5, outputs)
        pooled = features(level).mean(dim=(2, 3)) if level == "map" else features(level)
        bias = shared.shared.get(f"{name}.bias", torch.zeros(outputs))
        torch.testing.assert_close(logits, pooled @ shared.shared[f"{name}.weight"].T + bias)

    def test_learns_in_a_draft_and_is_frozen_in_a_final_space(self, name: str, outputs: int, level: str) -> None:
        draft = tc.AuxiliaryHead(space(level), name)
        assert all(parameter.requires_grad == (name != "simplex") for parameter in draft.parameters())
        final = tc.AuxiliaryHead(space(level).finalize(), name)
        assert list(final.parameters())
        assert not any(parameter.requires_grad for parameter in final.parameters())

    def test_never_changes_the_space(self, name: str, outputs: int, level: str) -> None:
        shared = space(level)
        before = {key: tensor.clone() for key, tensor in shared.shared.items()}
        head = tc.AuxiliaryHead(shared, name)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(1)
        assert all(torch.equal(tensor, before[key]) for key, tensor in shared.shared.items())
        assert shared.finalize().fingerprint == space(level).finalize().fingerprint

    def test_trained_tensors_become_the_spaces(self, name: str, outputs: int, level: str) -> None:
        draft = space(level, methods=(name,))
        head = tc.AuxiliaryHead(draft, name)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(2)
        draft.finalize(head.shared_tensors())
        assert torch.equal(tc.AuxiliaryHead(draft, name)(features(level)), head(features(level)))
        assert draft.fingerprint != space(level, methods=(name,)).finalize().fingerprint

    def test_is_refused_where_the_space_does_not_share_it(self, name: str, outputs: int, level: str) -> None:
        others = tuple(method for method in METHODS if method != name)
        with pytest.raises(
            tc.errors.ConfigError, match=f"{name}: expected it among the space's methods, got {others[0]}"
        ):
            tc.AuxiliaryHead(space(level, methods=others), name)
        with pytest.raises(tc.errors.ConfigError, match=f"{name}: expected it among the space's methods, got none"):
            tc.AuxiliaryHead(space(level, methods=()), name)

    def test_needs_the_spaces_tensors(self, name: str, outputs: int, level: str, tmp_path: Path) -> None:
        final = space(level).finalize()
        definition = tc.TaskHead.from_pretrained(tc.TaskHead(final, NAMES).save_pretrained(tmp_path / "head")).space
        with pytest.raises(tc.errors.DraftSpaceError, match="load the space itself"):
            tc.AuxiliaryHead(definition, name)
        loaded = tc.CompatSpace.from_pretrained(final.save_pretrained(tmp_path / "space"))
        read, made = (tc.AuxiliaryHead(one, name)(features(level)) for one in (loaded, final))
        assert torch.equal(read, made)

    def test_of_a_method_that_shares_none(self, name: str, outputs: int, level: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match="initial_weights: expected"):
            tc.AuxiliaryHead(space(level, methods=(name, "initial_weights")), "initial_weights")


class TestNames:
    def test_the_vocabulary_is_the_spaces(self) -> None:
        assert tc.CommonClassesHead(space()).class_names == NAMES
        assert isinstance(tc.CommonClassesHead(space()), tc.AuxiliaryHead)
        assert tc.AuxiliaryHead(space(), "simplex").class_names == NAMES

    @pytest.mark.parametrize(("name", "count"), [("rotation", 4), ("location", 4), ("flip", 2)])
    def test_the_number_of_logits_of_a_task(self, name: str, count: int) -> None:
        head = tc.AuxiliaryHead(space(), name)
        assert (head.num_classes, head.class_names) == (count, ())


class TestSimplex:
    @pytest.mark.parametrize("dim", [1, 2, 3, 8, 64, 511])
    def test_pairwise_cosines_are_equal(self, dim: int) -> None:
        head = tc.AuxiliaryHead(tc.CompatSpace(dim, ["a", "b"], ["simplex"]), "simplex")
        weight = head.weight.detach().double()
        assert weight.shape == (dim + 1, dim)
        cosines = weight @ weight.T
        expected = torch.full_like(cosines, -1 / dim).fill_diagonal_(1)
        torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=0)

    def test_is_never_trained(self) -> None:
        head = tc.AuxiliaryHead(tc.CompatSpace(D, NAMES, ["simplex"]), "simplex")
        assert head.bias is None
        assert not any(parameter.requires_grad for parameter in head.parameters())
        optimised = nn.ModuleList([head, nn.Linear(D, D)])
        before = head.weight.clone()
        optimizer = torch.optim.AdamW(optimised.parameters(), lr=1.0, weight_decay=1.0)
        head(optimised[1](features())).square().sum().backward()
        optimizer.step()
        assert torch.equal(head.weight, before)

    def test_holds_at_most_one_class_more_than_dimensions(self) -> None:
        names = [str(number) for number in range(D + 2)]
        full = tc.CompatSpace(D, names[: D + 1], ["simplex"])
        assert tc.AuxiliaryHead(full, "simplex")(features()).shape == (5, D + 1)
        with pytest.raises(tc.errors.ConfigError, match=f"at most {D + 1} equiangular classes, got {D + 2}"):
            tc.CompatSpace(D, names, ["simplex"])

    def test_does_not_depend_on_the_seed_or_the_vocabulary(self) -> None:
        heads = [
            tc.AuxiliaryHead(tc.CompatSpace(D, names, ["simplex"], seed=seed), "simplex")
            for names, seed in ((["a"], 0), (["b"], 9))
        ]
        assert torch.equal(heads[0].weight, heads[1].weight)
