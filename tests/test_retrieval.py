"""Retrieval numbers: a case by hand, and two other libraries on random features."""

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

import timm_compat as tc
from timm_compat.evaluation import retrieve

LINE = torch.tensor([[0.0], [1.0], [2.5], [4.5]])


def features(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that lean towards their class, so that neither everything nor nothing is found."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (count,), generator=draw)
    centres = torch.randn(6, 8, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, 8, generator=draw) * 1.5 + centres[labels], labels


def test_by_hand() -> None:
    # From 0: gallery at 0, 1, 2.5, 4.5 with classes b, a, b, a. For a: ranks 2 and 4.
    found = retrieve(
        torch.zeros(2, 1), torch.tensor([0, 2]), LINE, torch.tensor([1, 0, 1, 0]), distance="euclidean", ranks=(1, 2, 4)
    )
    assert found.cmc == {1: 0.0, 2: 1.0, 4: 1.0}
    assert found.mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert (found.num_queries, found.num_skipped, found.num_gallery) == (1, 1, 4)
    assert (found.distance, found.normalized, found.self_excluded, found.depth) == ("euclidean", False, False, None)


def test_leaves_out_the_query_itself() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    # Ranks of the one other image of the class: 0 -> 1, 2.5 (2); 1 -> 0, 2.5, 4.5 (3); 2.5 -> 1, 4.5, 0 (3);
    # 4.5 -> 2.5, 1 (2).
    found = retrieve(LINE, labels, LINE, labels, same_images=True, distance="euclidean", ranks=(1, 2))
    assert found.cmc == {1: 0.0, 2: 0.5}
    assert found.mean_average_precision == pytest.approx((1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    assert retrieve(LINE, labels, LINE, labels, distance="euclidean").cmc[1] == 1.0


def test_depth_cuts_the_list_off() -> None:
    queries, labels = torch.zeros(1, 1), torch.tensor([0])
    found = retrieve(queries, labels, LINE, torch.tensor([1, 0, 1, 0]), distance="euclidean", ranks=(1,), depth=3)
    assert found.mean_average_precision == pytest.approx((1 / 2) / 2)


@pytest.mark.parametrize(
    ("distance", "theirs"), [("cosine", CosineSimilarity()), ("euclidean", LpDistance(normalize_embeddings=False))]
)
@pytest.mark.parametrize("same", [True, False])
def test_pytorch_metric_learning_finds_the_same(distance, theirs, same) -> None:
    queries, query_labels = features(150, 0)
    gallery, gallery_labels = (queries, query_labels) if same else features(200, 1)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision"), k=len(gallery) - same, knn_func=CustomKNN(theirs)
    )
    expected = calculator.get_accuracy(queries, query_labels, gallery, gallery_labels, ref_includes_query=same)
    found = retrieve(queries, query_labels, gallery, gallery_labels, same_images=same, distance=distance, ranks=(1,))
    assert found.cmc[1] == pytest.approx(expected["precision_at_1"], abs=1e-6)
    assert found.mean_average_precision == pytest.approx(expected["mean_average_precision"], abs=1e-6)


def test_torchmetrics_finds_the_same_across_two_extractors() -> None:
    queries, labels = features(80, 0)
    gallery = queries + 0.7 * torch.randn(queries.shape, generator=torch.Generator().manual_seed(5))
    # torchmetrics takes what scores 0 or less for not found.
    scores = 2 + torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(gallery).T
    others = ~torch.eye(80, dtype=torch.bool)
    rows = [(scores[i][others[i]], labels[others[i]] == labels[i]) for i in range(80)]
    found = retrieve(queries, labels, gallery, labels, same_images=True, ranks=(1, 5))
    precisions = [retrieval_average_precision(score, relevant) for score, relevant in rows]
    assert found.mean_average_precision == pytest.approx(float(torch.stack(precisions).mean()), abs=1e-6)
    for k in (1, 5):
        hits = [retrieval_hit_rate(score, relevant, top_k=k) for score, relevant in rows]
        assert found.cmc[k] == pytest.approx(float(torch.stack(hits).mean()), abs=1e-6)


@pytest.mark.parametrize("same", [True, False])
def test_faiss_finds_what_the_exact_search_finds(same) -> None:
    queries, labels = features(120, 2)
    settings = {"same_images": same, "depth": 20, "ranks": (1, 10)}
    exact = retrieve(queries, labels, queries * 1.1 + 0.2, labels, **settings)
    fast = retrieve(queries, labels, queries * 1.1 + 0.2, labels, search="faiss", **settings)
    assert fast.search == "faiss"
    assert fast.cmc == pytest.approx(exact.cmc)
    assert fast.mean_average_precision == pytest.approx(exact.mean_average_precision, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"distance": "hamming"}, tc.errors.ConfigError, "cosine, euclidean, got 'hamming'"),
        ({"ranks": (0,)}, tc.errors.ConfigError, "ranks"),
        ({"depth": 3, "ranks": (5,)}, tc.errors.ConfigError, "at least the largest rank, 5, got 3"),
        ({"search": "faiss"}, tc.errors.ConfigError, "set depth"),
        ({"gallery": torch.zeros(4, 2)}, tc.errors.DataError, "1 and 2 dimensions"),
        (
            {"gallery": torch.zeros(0, 1), "gallery_labels": torch.zeros(0).long()},
            tc.errors.DataError,
            "gallery: expected",
        ),
        ({"queries": torch.full((4, 1), torch.nan)}, tc.errors.DataError, "NaN"),
        ({"gallery_labels": torch.full((4,), 7)}, tc.errors.DataError, "of a query's class"),
        ({"gallery_labels": torch.full((4,), -1)}, tc.errors.DataError, "at least 0"),
        ({"gallery_labels": torch.tensor([0, 0, 1, 1]), "same_images": True}, tc.errors.DataError, "same images"),
    ],
)
def test_refuses_what_does_not_fit(change, error, message) -> None:
    labels = torch.tensor([0, 1, 0, 1])
    sides = {"queries": LINE, "query_labels": labels, "gallery": LINE, "gallery_labels": labels}
    with pytest.raises(error, match=message):
        retrieve(**{**sides, **change})
