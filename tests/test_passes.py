"""One engine passes images through frozen networks, whatever holds the images and wherever it runs."""

import logging

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import timm_compat as tc
from timm_compat.evaluation.columns import matrix_of_columns
from timm_compat.evaluation.matrix import pair_accuracy
from timm_compat.models import passes as engine
from timm_compat.models.batch_size import default_batch_size
from timm_compat.models.passes import passes
from timm_compat.models.run_options import RunOptions

SIZE = 32


@pytest.fixture(scope="module")
def extractors() -> list[tc.CompatExtractor]:
    space = tc.CompatSpace(8, normalization="none")
    torch.manual_seed(0)
    return [
        tc.create_extractor(name, space, img_size=size).eval()
        for name, size in (("test_resnet", SIZE), ("test_vit", SIZE), ("test_efficientnet", 48))
    ]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(256, (11, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pixels):
    root = tmp_path_factory.mktemp("images")
    for number, image in enumerate(pixels):
        kind = root / ("cat", "dog")[number % 2]
        kind.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((60, 50)).save(kind / f"{number:02}.png")
    return root


def by_hand(extractor, images) -> torch.Tensor:
    with torch.no_grad():
        return extractor(extractor.preprocess(images))


def test_all_that_holds_images_gives_the_same_features(extractors, pixels) -> None:
    labels = torch.arange(11) % 2
    dataset = tc.data.ArrayDataset(pixels, labels, ("cat", "dog"))
    expected = by_hand(extractors[0], pixels)
    given = [
        pixels, pixels.numpy(), np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()), dataset,
        DataLoader(dataset, batch_size=4), pixels.split(4), (batch.numpy() for batch in pixels.split(5)),
        [(part, None) for part in pixels.split(3)], pixels.float() / 255,
    ]  # fmt: skip
    for images in given:
        found = tc.extract_features(extractors[0], images, batch_size=3)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_grey_arrays(pixels) -> None:
    extractor = tc.create_extractor("test_vit", tc.CompatSpace(4), in_chans=1, img_size=SIZE).eval()
    grey = pixels[:, 0].numpy()
    torch.testing.assert_close(tc.extract_features(extractor, grey), by_hand(extractor, torch.tensor(grey)[:, None]))


@pytest.mark.parametrize(
    "images", [7, ["cat.png"], [{"image": 1}], np.array(["cat.png"]), [], torch.zeros(0, 3, 32, 32)]
)
def test_what_holds_no_images_is_refused(extractors, images) -> None:
    with pytest.raises((tc.errors.DataError, tc.errors.ImageError), match="images: expected"):
        tc.extract_features(extractors[0], images)


def test_several_networks_on_one_pass(extractors, pixels) -> None:
    labels = torch.arange(11) % 2
    dataset = tc.data.ArrayDataset(pixels, labels, ("cat", "dog"))
    found = list(passes(extractors, dataset, pooled=[1], options=RunOptions(batch_size=4)))
    assert torch.cat([passed.positions for passed in found]).tolist() == list(range(11))
    assert torch.equal(torch.cat([passed.labels for passed in found]), labels)
    for number, extractor in enumerate(extractors):
        network = extractor.backbone if number == 1 else extractor
        with torch.no_grad():
            expected = network(extractor.preprocess(pixels))
        together = torch.cat([passed.outputs[number] for passed in found])
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_read_once(extractors, folder, monkeypatch, workers) -> None:
    dataset = tc.data.load_dataset("folder", folder, "train")
    alone = [tc.extract_features(extractor, dataset) for extractor in extractors]
    opened = []
    find = tc.data.ImageDataset.find
    monkeypatch.setattr(tc.data.ImageDataset, "find", lambda self, index: opened.append(index) or find(self, index))
    found = list(passes(extractors, dataset, options=RunOptions(batch_size=4, workers=workers)))
    for number, expected in enumerate(alone):
        together = torch.cat([passed.outputs[number] for passed in found])
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
    assert opened == ([] if workers else list(range(11)))
    assert torch.equal(torch.cat([passed.labels for passed in found]), dataset.labels)


def test_networks_are_afterwards_as_they_were(extractors, pixels) -> None:
    extractor = extractors[0].train()
    before = {name: (tensor.data_ptr(), tensor.stride()) for name, tensor in extractor.state_dict().items()}
    iterator = passes([extractor], pixels, options=RunOptions(batch_size=4))
    next(iterator)
    assert not extractor.backbone.training
    assert torch.is_grad_enabled()
    iterator.close()
    assert extractor.training
    assert before == {name: (tensor.data_ptr(), tensor.stride()) for name, tensor in extractor.state_dict().items()}
    extractor.eval()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(extractors, pixels, monkeypatch, caplog, error) -> None:
    seen = _limit(monkeypatch, extractors[0], 3, error)
    with caplog.at_level(logging.WARNING):
        found = list(passes([extractors[0]], pixels, options=RunOptions(batch_size=8)))
    assert seen == [8, 4, 2, 2, 2, 2, 2, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "cpu: 8 images at a time do not fit into memory; continuing with 2"
    ]
    together = torch.cat([passed.outputs[0] for passed in found])
    monkeypatch.undo()
    torch.testing.assert_close(together, by_hand(extractors[0], pixels), rtol=1e-4, atol=1e-5)


def test_memory_for_no_image_is_an_error_of_ours(extractors, pixels, monkeypatch) -> None:
    _limit(monkeypatch, extractors[0], 0, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(tc.errors.ConfigError, match="cpu: expected memory for one image"):
        tc.extract_features(extractors[0], pixels)


def test_other_errors_stay_what_they_are(extractors, pixels, monkeypatch) -> None:
    _limit(monkeypatch, extractors[0], 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        tc.extract_features(extractors[0], pixels)


def _limit(monkeypatch, extractor, most, error) -> list[int]:
    """More images than that raise the error; what was asked for is noted."""
    seen, features = [], extractor.backbone._features

    def limited(images):
        seen.append(len(images))
        if len(images) > most:
            raise error
        return features(images)

    monkeypatch.setattr(extractor.backbone, "_features", limited)
    return seen


def test_mixed_precision(extractors, pixels) -> None:
    exact = tc.extract_features(extractors[1], pixels)
    mixed = tc.extract_features(extractors[1], pixels, amp="bf16")
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.1)


def test_features_that_precision_has_spoilt_are_an_error(extractors, pixels, monkeypatch) -> None:
    monkeypatch.setattr(extractors[0].backbone, "_features", lambda images: torch.full((len(images), 64), torch.inf))
    monkeypatch.setattr(extractors[0].interface, "forward", lambda features: features)
    with pytest.raises(tc.errors.ConfigError, match="amp: expected finite features"):
        tc.extract_features(extractors[0], pixels, amp="bf16")


def test_precision_that_a_device_lacks_is_refused_before_any_image(extractors, pixels, monkeypatch) -> None:
    def refuse(*arguments):
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr("timm_compat.models.run_options.F.conv2d", refuse)
    with pytest.raises(tc.errors.ConfigError, match="amp: expected a precision that cpu computes in, got 'bf16'"):
        tc.extract_features(extractors[0], _unseen(), amp="bf16")


def _unseen():
    pytest.fail("images were asked for")
    yield


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:77"}, "device: expected one of cpu.*got 'cuda:77'"),
        ({"device": "gpu"}, "device: expected one of cpu.*got 'gpu'"),
        ({"device": "meta"}, "device: expected one of cpu.*got 'meta'"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
        ({"batch_size": True}, "batch_size: expected an integer"),
        ({"workers": -1}, "workers: expected an integer of at least 0, got -1"),
        ({"amp": "int8"}, "amp: expected one of bf16, fp16"),
    ],
)
def test_settings_are_checked_at_once(extractors, settings, message) -> None:
    with pytest.raises(tc.errors.ConfigError, match=message):
        tc.extract_features(extractors[0], _unseen(), **settings)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("test_resnet", 32, 256), ("convnext_base", 224, 4), ("tf_efficientnet_lite0", 224, 4), ("resnet50", 224, 8)],
)
def test_batches_on_a_cpu_stay_small(name, size, expected) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert default_batch_size([{"input_size": (3, size, size)}], [model], torch.device("cpu")) == expected


def test_choosing_a_batch_size_is_not_counted(pixels) -> None:
    extractor = tc.create_extractor("test_convnext", tc.CompatSpace(4), img_size=SIZE).eval()
    with FlopCounterMode(display=False) as once:
        tc.extract_features(extractor, pixels)
    with FlopCounterMode(display=False) as again:
        tc.extract_features(extractor, pixels)
    assert once.get_total_flops() == again.get_total_flops() > 0


def test_no_bar_in_a_log(extractors, pixels, capsys) -> None:
    tc.extract_features(extractors[0], pixels)
    assert capsys.readouterr().err == ""
    tc.extract_features(extractors[0], pixels, progress=True)
    assert "image" in capsys.readouterr().err


def test_out_of_memory_is_known_by_its_words() -> None:
    assert engine.is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not engine.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class TestColumns:
    """Heads with test images of their own, of which several are the same."""

    def check(self, extractors, tests, once: int) -> None:
        space, parts = extractors[0].space, {"a": extractors[0], "b": extractors[1]}
        torch.manual_seed(0)
        heads = {name: tc.TaskHead(space, test.class_names) for name, test in tests.items()}
        for head in heads.values():
            torch.nn.init.normal_(head.classifier.weight)
        alone = {
            name: [pair_accuracy(part, head, tests[name]) for part in parts.values()] for name, head in heads.items()
        }
        seen = []
        hook = extractors[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        matrix = matrix_of_columns(parts, heads, tests)
        hook.remove()
        assert sum(seen) == once
        assert matrix.columns == tuple(heads)
        assert matrix.accuracy.T.tolist() == list(alone.values())
        assert matrix.counts == tuple(len(test) for test in tests.values())
        assert not any(matrix.left_out)

    def test_arrays(self, extractors, pixels) -> None:
        whole = tc.data.ArrayDataset(pixels, torch.arange(11) % 3, ("cat", "dog", "eel"))
        grown = tc.data.ArrayDataset(pixels.repeat_interleave(2, dim=3), torch.arange(11) % 2, ("ant", "bee"))
        twice = tc.data.ArrayDataset(pixels[[0, 0, 1]], torch.tensor([0, 0, 1]), ("cat", "dog"))
        tests = {
            "first": whole.of_classes(["cat", "dog"]), "grown": grown, "last": whole.of_classes(["eel", "dog"]),
            "twice": twice,
        }  # fmt: skip
        self.check(extractors, tests, once=11 + 11 + 1)

    def test_files(self, extractors, folder) -> None:
        sets = [tc.data.load_dataset("folder", folder, "train") for _ in range(2)]
        self.check(extractors, {"a": sets[0], "b": sets[1].subset(range(9))}, once=11)
