"""What the method rests on, on real digits: private heads start at zero, shrink, and read normalised features."""

import pytest
import torch

import timm_compat as tc

PAIR = ("test_resnet", "test_efficientnet")


def train_pair(
    methods: tuple[str, ...], normalization: str, head_weight_decay: float, start: str
) -> tc.RecombinationMatrix:
    train, test = tc.data.load_digits("train"), tc.data.load_digits("test")
    space = tc.CompatSpace(64, train.class_names, methods, normalization=normalization)
    torch.manual_seed(0)
    extractors = {name: tc.create_extractor(name, space, in_chans=1, img_size=32) for name in PAIR}
    heads = {name: tc.TaskHead(space, train.class_names) for name in PAIR}
    if start == "random":
        for head in heads.values():
            head.classifier.reset_parameters()
    halves = train.halves(torch.Generator().manual_seed(0))
    members = [tc.Member(name, extractors[name], heads[name], half) for name, half in zip(PAIR, halves, strict=True)]
    config = tc.TrainConfig(epochs=20, batch_size=64, random_crop=1, head_weight_decay=head_weight_decay)
    tc.fit(space, members, config)
    return tc.recombination_matrix(extractors, heads, test)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_zero_start_normalised_interface_and_head_decay_make_heads_exchangeable() -> None:
    plain = train_pair(("common_classes",), "none", 1e-4, "random")
    tied = train_pair(("common_classes",), "batch", 5.0, "random")
    default = train_pair(("common_classes",), "batch", 5.0, "zero")
    alone = train_pair((), "batch", 5.0, "zero")

    def gap(matrix: tc.RecombinationMatrix) -> float:
        return matrix.native_accuracy - matrix.recombined_accuracy

    assert gap(plain) > 0.1 > 0.05 > gap(tied)
    assert gap(default) < 0.02
    assert default.native_accuracy > plain.native_accuracy - 0.02
    assert alone.recombined_accuracy < 0.4 < 0.9 < alone.native_accuracy
