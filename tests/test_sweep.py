"""Every architecture that timm lists: on the meta device all of them (maps of a stage: one of each line of names), and
a real forward and backward for each family.

By default one small network of each kind, slowly one of every family, and all architectures: ``pytest
tests/test_sweep.py -m slow -s`` prints the table.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import timm_compat as tc

D = 32
SIZE = 64
LEVELS = ("pooled", "map")
LINE = re.compile("[a-z]*")
ARCHITECTURES = [name for name in timm.list_models() if not name.startswith("compat_")]
MODULES = {
    module: names
    for module in timm.list_modules()
    if (names := [name for name in timm.list_models(module=module) if name in set(ARCHITECTURES)])
}
ENCODERS = {
    "deepseek_vit_412m_enc",
    "gemma4_vit_167m_enc",
    "gemma4_vit_570m_enc",
    "mobilenetv5_300m_enc",
    "qwen3_vit_306m_enc",
    "qwen3_vit_416m_enc",
    "qwen3_vit_88m_enc",
}
# Architectures that cannot serve, by level, with the reason that BackboneError gives.
RAISES: dict[str, dict[str, str]] = {"pooled": {}, "map": {}}
# These look at values, which meta tensors do not have: a real forward pass at reduced depth.
LOOKS_AT_VALUES = {name: {"depth": 1, "img_size": 96} for name in MODULES.get("gemma4_vit", [])}

# The architecture with the fewest parameters of each of timm's modules, and what makes it smaller still.
# 64 x 64 pixels, where img_size says nothing else; None is timm's own size.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", {"depth": 1}),
    "byoanet": ("halonet_h1", {"img_size": None}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", {"depth": 2}),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {}),
    "convmixer": ("convmixer_768_32", {}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {"img_size": None}),
    "csatv2": ("csatv2", {}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {"depths": (1, 1, 1, 1)}),
    "deepseek_vit": ("deepseek_vit_412m", {"depth": 1, "img_size": 224}),
    "deit": ("deit_tiny_patch16_224", {}),
    "densenet": ("densenet121", {"block_config": (1, 1, 1, 1)}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {"depths": (1, 1, 1, 1), "img_size": 224}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", {"depth": 2}),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {"layers": (1, 1, 1, 1)}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": ("gemma4_vit_167m", {"depth": 1}),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_b", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {}),
    "hieradet_sam2": ("sam2_hiera_tiny", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {"img_size": 96}),
    "inception_v3": ("inception_v3", {"img_size": 96}),
    "inception_v4": ("inception_v4", {"img_size": 96}),
    "lcnetv2": ("lcnetv2_small", {"depths": (1, 1, 1, 1)}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {}),
    "metaformer": ("poolformerv2_s12", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilenetv3": ("lcnet_035", {}),
    "mobilenetv5": ("mobilenetv5_base", {"channel_multiplier": 0.25}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", {"depth": 1}),
    "nasnet": ("nasnetalarge", {}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "nfnet": ("test_nfnet", {}),
    "pit": ("pit_ti_224", {}),
    "pnasnet": ("pnasnet5large", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", {"depth": 1}),
    "rdnet": ("rdnet_tiny", {}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m1", {}),
    "res2net": ("res2next50", {"layers": (1, 1, 1, 1)}),
    "resnest": ("resnest14d", {}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {}),
    "rexnet": ("rexnet_100", {}),
    "selecsls": ("selecsls42", {}),
    "senet": ("legacy_seresnet18", {}),
    "sequencer": ("sequencer2d_s", {"layers": (1, 1, 1, 1)}),
    "shvit": ("shvit_s1", {}),
    "sknet": ("skresnet18", {}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", {"depths": (1, 1, 1, 1)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"depths": (1, 1, 1, 1)}),
    "tiny_vit": ("tiny_vit_5m_224", {"depths": (1, 1, 1, 1)}),
    "tnt": ("tnt_s_legacy_patch16_224", {"depth": 2}),
    "tresnet": ("tresnet_m", {"layers": (1, 1, 1, 1)}),
    "twins": ("twins_svt_small", {"depths": (1, 1, 1, 1)}),
    "vgg": ("vgg11", {"mlp_ratio": 0.05}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("test_vit", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"depth": 1}),
    "vitamin": ("vitamin_small_224", {"depth": 2}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {}),
    "xception_aligned": ("xception41p", {}),
    "xcit": ("xcit_nano_12_p8_224", {"depth": 2}),
}

# Families whose small member has no single linear classifier to fuse into.
# efficientvim weighs its classifiers: alike until they are trained (see test_compose).
NOT_FUSABLE = {"volo"}

FAMILIES = sorted(SMALL.keys() & MODULES.keys())
# One of each kind: convolutions with BatchNorm and without, windows, tokens, tokens of several stages, channels last.
KINDS = {"resnet", "efficientnet", "nfnet", "convnext", "maxxvit", "vision_transformer", "levit", "mambaout"}
MOST_FAMILIES_SLOWLY = [
    pytest.param(family, marks=[] if family in KINDS else [pytest.mark.slow]) for family in FAMILIES
]


def space(level: str = "pooled") -> tc.CompatSpace:
    return tc.CompatSpace(D, methods=("rotation",), level=level)


def small(family: str, shared: tc.CompatSpace) -> tc.CompatExtractor:
    name, settings = SMALL[family]
    return tc.create_extractor(name, shared, **{"img_size": SIZE, **settings})


def images(extractor: tc.CompatExtractor, batch: int = 2) -> Tensor:
    return torch.randn(batch, *extractor.data_config["input_size"], generator=torch.Generator().manual_seed(0))


def assert_trains(extractor: tc.CompatExtractor, rank: int) -> None:
    features = extractor.train()(images(extractor))
    assert features.shape[:2] == (2, D)
    assert features.ndim == rank
    assert all(side > 0 for side in features.shape)
    (features * torch.linspace(-1, 1, features.numel()).reshape(features.shape)).sum().backward()
    for name, parameter in extractor.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    first = next(parameter for parameter in extractor.backbone.parameters() if parameter.requires_grad)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


class TestEveryFamily:
    def test_has_a_line_in_the_table(self) -> None:
        missing = sorted(MODULES.keys() - SMALL.keys())
        assert not missing, f"give these modules of timm {timm.__version__} a small architecture in SMALL: {missing}"
        assert sum(len(names) for names in MODULES.values()) == len(ARCHITECTURES)

    @pytest.mark.parametrize("family", MOST_FAMILIES_SLOWLY)
    def test_forward_and_backward(self, family: str) -> None:
        assert SMALL[family][0] in MODULES[family]
        extractor = small(family, space())
        assert_trains(extractor, rank=2)
        size = extractor.data_config["input_size"][1:]
        assert_trains(tc.create_extractor(extractor.backbone.model, space("map"), img_size=size), rank=4)

    @pytest.mark.slow
    @pytest.mark.parametrize("family", FAMILIES)
    def test_with_a_classifier_is_adopted_as_the_one_without(self, family: str) -> None:
        name = SMALL[family][0]
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=5)
            adopted = tc.create_extractor(model, space()).state_dict()
            built = tc.create_extractor(name, space()).state_dict()
        shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in (adopted, built)]
        assert shapes[0] == shapes[1]

    @pytest.mark.slow
    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_folder_round_trip(self, family: str, level: str, tmp_path: Path) -> None:
        extractor = small(family, space(level).finalize())
        inputs = images(extractor)
        with torch.no_grad():
            extractor.train()(inputs)
            extractor.eval()
            loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
            assert torch.equal(loaded(inputs), extractor(inputs))

    @pytest.mark.slow
    @pytest.mark.parametrize("family", FAMILIES)
    def test_fuses_or_says_why_not(self, family: str) -> None:
        extractor = small(family, space())
        model = tc.compose(extractor, tc.TaskHead(extractor.space, ["cat", "dog", "owl"]))
        torch.nn.init.normal_(model.head.classifier.weight, generator=torch.Generator().manual_seed(0))
        inputs = images(extractor)
        with torch.no_grad():
            model.train()(inputs)
            model.eval()
            if family in NOT_FUSABLE:
                with pytest.raises(tc.errors.FuseError, match=r"keep .*composed"):
                    model.fuse()
            else:
                torch.testing.assert_close(model.fuse()(inputs), model(inputs), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, str]]]:
    """What every architecture did, by level; printed at the end."""
    outcomes: dict[str, dict[str, str]] = {level: {} for level in LEVELS}
    yield outcomes
    for level, found in outcomes.items():
        raising = {name: reason for name, reason in found.items() if reason != "works"}
        print(f"\nlevel {level}: {len(found) - len(raising)} work, {len(raising)} raise", *raising.items(), sep="\n")


def outcome(name: str, level: str) -> str:
    """ "works", or the message of the BackboneError."""
    try:
        try:
            with torch.device("meta"):
                extractor = tc.create_extractor(name, space(level))
                features = extractor(torch.empty(2, *extractor.data_config["input_size"]))
        except RuntimeError as error:
            if "cannot be called on meta tensors" not in str(error):
                raise
            extractor = tc.create_extractor(name, space(level), **LOOKS_AT_VALUES[name])
            features = extractor(images(extractor))
    except tc.errors.BackboneError as error:
        return str(error)
    assert features.shape[:2] == (2, D), name
    assert features.ndim == (4 if level == "map" else 2), name
    assert all(side > 0 for side in features.shape), name
    return "works"


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestEveryArchitecture:
    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("module", MODULES)
    def test_works_or_raises_as_known(self, module: str, level: str, table: dict[str, dict[str, str]]) -> None:
        names = MODULES[module] if level == "pooled" else first_of_each_line(MODULES[module])
        found = {name: outcome(name, level) for name in names}
        table[level].update(found)
        raising = {name: reason for name, reason in found.items() if reason != "works"}
        assert raising == {name: reason for name, reason in RAISES[level].items() if name in found}

    def test_only_the_encoders_lack_a_classifier(self) -> None:
        suspects = {name for name in ARCHITECTURES if name.endswith("_enc")} | {names[0] for names in MODULES.values()}
        assert {name for name in suspects if not hasattr(meta_model(name), "reset_classifier")} == ENCODERS
        assert {outcome(name, "pooled") for name in ENCODERS} == {"works"}


def first_of_each_line(names: Iterable[str]) -> list[str]:
    """One architecture for each word that names begin with (resnet, seresnet ...): its sizes share the stages' code."""
    return list({LINE.match(name)[0]: name for name in sorted(names, reverse=True)}.values())


def meta_model(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)
