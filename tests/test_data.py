"""Data sets in memory and the batches drawn from them."""

import pytest
import torch

import timm_compat as tc
from timm_compat.data.augmentation import shift
from timm_compat.data.streams import BatchStream


def small_set(count: int = 10) -> tc.data.ArrayDataset:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 4, 4).contiguous()
    return tc.data.ArrayDataset(images, torch.arange(count) % 3, ("x", "y", "z"))


class TestArrayDataset:
    def test_digits_are_real_and_split_without_overlap(self) -> None:
        train, test = tc.data.load_digits("train"), tc.data.load_digits("test")
        assert (len(train), len(test)) == (1348, 449)
        assert train.images.shape[1:] == (1, 8, 8)
        assert int(train.images.max()) == 255
        assert set(test.labels.tolist()) == set(range(10))
        assert torch.equal(train.images, tc.data.load_digits("train").images)

    def test_selects_classes_by_name_and_counts_labels_anew(self) -> None:
        chosen = small_set().of_classes(["z", "x"])
        assert chosen.class_names == ("z", "x")
        assert chosen.images[:, 0, 0, 0].tolist() == [0, 2, 3, 5, 6, 8, 9]
        assert chosen.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]

    def test_halves_are_disjoint_and_complete(self) -> None:
        first, second = small_set().halves(torch.Generator().manual_seed(0))
        values = torch.cat([first.images, second.images])[:, 0, 0, 0].tolist()
        assert sorted(values) == list(range(10))

    @pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 3), (5, 3, 8, 8)])
    def test_arrays_of_every_usual_layout(self, shape: tuple[int, ...]) -> None:
        images = torch.randint(256, shape, dtype=torch.uint8).numpy()
        dataset = tc.data.ArrayDataset.from_arrays(images, [0, 1, 0, 1, 0], ["p", "q"])
        assert dataset.images.shape == (5, 3 if 3 in shape else 1, 8, 8)
        assert dataset[1][1] == 1

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "uint8"),
            (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "N, C, H, W"),
            (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "one per image"),
            (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 3]), "0 to 2, got 3"),
            (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, -1]), "0 to 2, got -1"),
        ],
    )
    def test_refuses_what_does_not_fit(self, images, labels, message: str) -> None:
        with pytest.raises(tc.errors.DataError, match=message):
            tc.data.ArrayDataset(images, labels, ("x", "y", "z"))

    def test_refuses_unknown_classes_and_splits(self) -> None:
        with pytest.raises(tc.errors.DataError, match="got w"):
            small_set().of_classes(["w"])
        with pytest.raises(tc.errors.ConfigError, match="train, test"):
            tc.data.load_digits("valid")


CONFIG = {"input_size": (1, 4, 4), "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
CONFIG |= {"mean": (0.5,), "std": (0.5,)}
KEPT = {"kept": CONFIG}


def step_of(stream: BatchStream, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = next(stream.batches(step, step + 1))
    return batch.images["kept"], batch.labels


class TestBatchStream:
    def test_every_pass_sees_every_image_once(self) -> None:
        stream = BatchStream(small_set(), 4, seed=0, name="a", data_configs=KEPT)
        seen = torch.cat([step_of(stream, step)[0][:, 0, 0, 0] for step in range(5)]).tolist()
        assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
        assert seen[:10] != seen[10:]

    def test_is_a_function_of_the_step(self) -> None:
        options = {"data_configs": KEPT, "augmentation": tc.TrainConfig(random_crop=1, hflip=0.5)}
        first, later = (BatchStream(small_set(), 4, seed=0, name="a", **options) for _ in range(2))
        for step in range(9):
            step_of(first, step)
        assert all(torch.equal(x, y) for x, y in zip(step_of(first, 7), step_of(later, 7), strict=True))

    def test_names_and_seeds_keep_streams_apart(self) -> None:
        labels = [
            step_of(BatchStream(small_set(), 10, seed=seed, name=name, data_configs=KEPT), 0)[0][:, 0, 0, 0].tolist()
            for seed, name in [(0, "a"), (0, "b"), (1, "a")]
        ]
        assert labels[0] != labels[1] != labels[2] != labels[0]

    def test_processes_share_a_batch_without_overlap(self) -> None:
        whole = step_of(BatchStream(small_set(), 6, seed=0, name="a", data_configs=KEPT), 3)[0][:, 0, 0, 0].tolist()
        parts = [
            step_of(BatchStream(small_set(), 6, seed=0, name="a", data_configs=KEPT, process=(rank, 2)), 3)[0]
            for rank in range(2)
        ]
        assert sorted(torch.cat(parts)[:, 0, 0, 0].tolist()) == sorted(whole)

    def test_batch_larger_than_the_set(self) -> None:
        images, labels = step_of(BatchStream(small_set(3), 7, seed=0, name="a", data_configs=KEPT), 1)
        assert len(images) == len(labels) == 7

    def test_shift_moves_within_bounds(self) -> None:
        image = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4)
        shifted = shift(
            image.expand(50, 1, 4, 4), 1, torch.randint(3, (2, 50), generator=torch.Generator().manual_seed(0))
        )
        padded = torch.nn.functional.pad(image[0, 0], (1, 1, 1, 1))
        allowed = {padded[y : y + 4, x : x + 4].numpy().tobytes() for y in range(3) for x in range(3)}
        found = {result[0].contiguous().numpy().tobytes() for result in shifted}
        assert found <= allowed
        assert len(found) > 5
