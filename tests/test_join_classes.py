"""Joining through the classes in common: a pair of timm's test models, trained here on real digits."""

import warnings

import pytest
import timm
import torch
from torch.nn import functional as F

import timm_compat as tc

pytestmark = pytest.mark.slow  # two networks are trained first

DIGITS = tuple(str(digit) for digit in range(10))
PARITY = ("even", "odd")


def trained(name: str, data: tc.data.ArrayDataset) -> torch.nn.Module:
    """A plain timm classifier of digits, trained in plain PyTorch."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, in_chans=1)
    model.pretrained_cfg["label_names"] = list(DIGITS)
    prepare = tc.create_extractor(name, tc.CompatSpace(1), in_chans=1, img_size=32).preprocess
    images, optimizer = prepare(data.images), torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=130)
    model.train()
    for step in range(130):
        chosen = torch.randint(len(images), (96,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(images[chosen]), data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    train = tc.data.load_digits("train")
    return trained("test_resnet", train), trained("test_efficientnet", train)


@pytest.fixture(scope="module")
def parts(pair) -> tuple[tc.CompatExtractor, tc.TaskHead]:
    return tc.split(pair[0], img_size=32)


@pytest.fixture(scope="module")
def parity_head(parts) -> tc.TaskHead:
    """Another task in the same space: its logits are fitted to whether a digit is odd."""
    extractor, train = parts[0], tc.data.load_digits("train")
    features = tc.extract_features(extractor, train)
    head = tc.TaskHead(extractor.space, PARITY)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        weight = head.classifier.weight
        value = F.cross_entropy(head(features), train.labels % 2) + 1e-2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head.eval()


def accuracy(extractor: tc.CompatExtractor, head: tc.TaskHead, labels: torch.Tensor) -> float:
    features = tc.extract_features(extractor, tc.data.load_digits("test"))
    return (head(features).argmax(1) == labels).float().mean().item()


def test_one_join_without_any_image_serves_every_head(pair, parts, parity_head) -> None:
    reference, head = parts
    labels = tc.data.load_digits("test").labels
    joined = tc.join(reference.space, pair[1], img_size=32)
    own = accuracy(*tc.split(pair[1], img_size=32), labels)
    assert joined.fit_report.num_common_classes == 10
    assert joined.fit_report.rests_on == "10 classes in common"
    assert accuracy(joined, head, labels) > 0.95 * own
    assert accuracy(joined, parity_head, labels % 2) > 0.8  # half are odd


def test_images_of_any_kind_and_classes_together_do_as_well(pair, parts, parity_head) -> None:
    reference, head = parts
    test = tc.data.load_digits("test")
    without = tc.join(reference.space, pair[1], img_size=32)
    joined = tc.join(
        reference.space, pair[1], tc.data.load_digits("train").images[:60],
        reference=reference, heads=[head, parity_head], img_size=32,
    )  # fmt: skip
    report = joined.fit_report
    assert report.rests_on == "10 classes in common and 60 unlabelled images"
    assert list(report.agreements) == ["the head over 0, 1 and 8 more", "the head over even, odd"]
    assert accuracy(joined, head, test.labels) > accuracy(without, head, test.labels) - 0.02
    assert accuracy(joined, parity_head, test.labels % 2) > accuracy(without, parity_head, test.labels % 2) - 0.02


def test_images_unlike_the_references_mislead_only_without_classes_in_common(pair, parts) -> None:
    reference, _ = parts
    sixes = tc.data.load_digits("train").of_classes(["6"]).images[:120]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        report = tc.join(reference.space, pair[1], sixes, reference=reference, img_size=32).fit_report
    with pytest.warns(UserWarning, match="images unlike those that the reference learned from"):
        alone = tc.join(reference.space, pair[1], sixes, reference=reference, classes=False, img_size=32).fit_report
    assert report.shift == pytest.approx(alone.shift)
    assert "nearer" in alone.advice
    assert "nearer" not in report.advice


def test_classes_are_matched_by_name_not_by_place(pair, parts) -> None:
    reference, _ = parts
    turned = timm.create_model("test_efficientnet", num_classes=10, in_chans=1)
    state, order = pair[1].state_dict(), torch.randperm(10, generator=torch.Generator().manual_seed(0))
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][order]
    turned.load_state_dict(state)
    names = [DIGITS[number] for number in order]
    joined = tc.join(reference.space, turned.eval(), class_names=names, img_size=32)
    plain = tc.join(reference.space, pair[1], img_size=32)
    test = tc.data.load_digits("test")
    torch.testing.assert_close(
        tc.extract_features(joined, test), tc.extract_features(plain, test), rtol=1e-3, atol=1e-3
    )


def test_a_space_is_all_that_travels(pair, parts, tmp_path) -> None:
    reference, head = parts
    reference.space.save_pretrained(tmp_path / "space")
    head.save_pretrained(tmp_path / "head")
    space = tc.CompatSpace.from_pretrained(tmp_path / "space")
    joined = tc.join(space, pair[1], img_size=32)
    joined.save_pretrained(tmp_path / "joined")
    loaded = tc.CompatExtractor.from_pretrained(tmp_path / "joined")
    model = tc.compose(loaded, tc.TaskHead.from_pretrained(tmp_path / "head"))
    plain = tc.compose(joined, head).fuse()
    images = loaded.preprocess(tc.data.load_digits("test").images[:8])
    torch.testing.assert_close(model(images), plain(images), rtol=1e-3, atol=1e-3)


def test_nothing_to_rest_on(pair, parts) -> None:
    space = parts[0].space
    with pytest.raises(tc.errors.ConfigError, match=r"knows a, b, c, \.\.\., the space 0, 1, 2"):
        tc.join(space, pair[1], class_names=[*"abcdefghij"], img_size=32)
    definition = tc.CompatSpace.from_config(space.to_config())
    with pytest.raises(tc.errors.ConfigError, match="load the space itself"):
        tc.join(definition, pair[1], img_size=32)
    nameless = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    with pytest.raises(tc.errors.ConfigError, match="nobody knows the names"):
        tc.join(space, nameless, img_size=32)
