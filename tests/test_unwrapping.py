"""Compiled and distributed modules, parts of half precision, and timm's own checkpoints are taken as they come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import timm_compat as tc
from timm_compat.models.weights import load_weights

SIZE = 32


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def make(space: tc.CompatSpace | None = None, name: str = "test_resnet") -> tc.CompatExtractor:
    own = tc.CompatSpace(16, methods=("rotation",)).finalize() if space is None else space
    return tc.create_extractor(name, own, img_size=SIZE).eval()


def make_head(space: tc.CompatSpace) -> tc.TaskHead:
    head = tc.TaskHead(space, ["a", "b", "c"]).eval()
    nn.init.normal_(head.classifier.weight)
    return head


def raw(count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda module: nn.DataParallel(compiled(module))])
class TestWrapped:
    def test_model_becomes_an_extractor(self, wrap: Callable[[nn.Module], Any]) -> None:
        model = timm.create_model("test_resnet").eval()
        extractor = tc.create_extractor(wrap(model), tc.CompatSpace(16)).eval()
        plain = extractor.backbone.model
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())

    def test_classifier_is_taken_apart(self, wrap: Callable[[nn.Module], Any]) -> None:
        model = timm.create_model("test_resnet", num_classes=3).eval()
        extractor, head = tc.split(wrap(model), class_names=["a", "b", "c"])
        images = extractor.preprocess(torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8))
        torch.testing.assert_close(tc.compose(extractor, head)(images), model(images), atol=1e-4, rtol=1e-4)

    def test_parts_are_composed_and_trained(self, wrap: Callable[[nn.Module], Any]) -> None:
        extractor = make()
        head = make_head(extractor.space)
        model = tc.compose(wrap(extractor), wrap(head))
        assert model.extractor is extractor
        assert model.head is head
        member = tc.Member("a", wrap(extractor), wrap(head), tc.data.load_digits("train"))
        assert member.extractor is extractor
        assert tc.Reference(wrap(extractor)).extractor is extractor

    def test_parts_inside_are_saved_under_their_plain_names(
        self, wrap: Callable[[nn.Module], Any], tmp_path: Path
    ) -> None:
        extractor = make()
        model = tc.compose(extractor, make_head(extractor.space))
        expected, digest = model(extractor.preprocess(raw())), model.digest()
        extractor.backbone.model.layer1 = wrap(extractor.backbone.model.layer1)
        extractor.backbone.model = wrap(extractor.backbone.model)
        extractor.interface = wrap(extractor.interface)
        model.head = wrap(model.head)
        model.extractor = wrap(extractor)
        assert model.digest() == digest
        extractor.save_pretrained(tmp_path / "extractor")
        model.save_pretrained(tmp_path / "model")
        loaded = tc.compose(tc.CompatExtractor.from_pretrained(tmp_path / "extractor"), model.parts["head"])
        again = type(model).from_pretrained(tmp_path / "model")
        images = loaded.extractor.preprocess(raw())
        for one in (loaded, again):
            torch.testing.assert_close(one(images), expected)


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_extractor_takes_what_preprocess_gives(self, dtype: torch.dtype) -> None:
        extractor = make()
        head = make_head(extractor.space)
        expected = head(extractor(extractor.preprocess(raw())))
        half = extractor.to(dtype)
        features = half(half.preprocess(raw()))
        assert features.dtype == dtype
        for other in (head, head.to(dtype)):
            logits = tc.compose(half, other)(half.preprocess(raw()))
            assert torch.linalg.norm(logits.float() - expected) < 0.05 * torch.linalg.norm(expected)
        fused = tc.compose(half, head).fuse()
        logits = fused(half.preprocess(raw()).to(dtype))
        assert torch.linalg.norm(logits.float() - expected) < 0.05 * torch.linalg.norm(expected)

    def test_double_images_are_still_refused(self) -> None:
        with pytest.raises(
            tc.errors.ImageError, match=r"expected torch\.bfloat16 as the weights are, got torch\.float64"
        ):
            make().bfloat16()(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.float64))

    def test_backbone_joins_a_space(self) -> None:
        reference = make()
        images = torch.randint(0, 256, (60, 3, SIZE, SIZE), dtype=torch.uint8)
        body = make(name="test_efficientnet").backbone.model
        joined, bare = {}, tc.CompatSpace.from_config(reference.space.to_config())  # without its untrained classes
        for dtype in (torch.float32, torch.bfloat16):
            settings = {"reference": reference, "img_size": SIZE}
            with pytest.warns(UserWarning, match="fitted on only 60 images"):
                joined[dtype] = tc.join(bare, body.to(dtype), images, **settings).fit_report.r2
        assert joined[torch.bfloat16] == pytest.approx(joined[torch.float32], abs=0.1)


# The smallest architecture of each family whose classifier holds more than a linear layer.
FAMILIES = ["repvit_m0_9", "levit_128s", "shvit_s1", "efficientvit_m0", "iformer_t", "caformer_s18", "test_resnet"]


class TestTimmsCheckpoints:
    @pytest.mark.parametrize("name", [*FAMILIES, pytest.param("convformer_s18", marks=pytest.mark.slow)])
    def test_fill_a_backbone(self, name: str, tmp_path: Path) -> None:
        state = timm.create_model(name).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
        backbone = tc.create_extractor(name, tc.CompatSpace(4)).backbone
        load_weights(backbone, tmp_path / "model.safetensors")
        assert all(torch.equal(value, state[key]) for key, value in backbone.model.state_dict().items())

    def test_of_another_architecture_are_refused(self, tmp_path: Path) -> None:
        state = timm.create_model("test_resnet").state_dict() | {"head.norm.weight": torch.zeros(2)}
        save_file(state, tmp_path / "model.safetensors")
        backbone = tc.create_extractor("test_resnet", tc.CompatSpace(4)).backbone
        with pytest.raises(tc.errors.BackboneError, match=r"not expected: head\.norm\.weight"):
            load_weights(backbone, tmp_path / "model.safetensors")
