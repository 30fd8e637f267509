"""Pictures: what is drawn, on whose axis, and that it can be read without colour."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

import timm_compat as tc
from timm_compat.evaluation import plots
from timm_compat.evaluation.feature_plot import feature_plot, principal_plane

NAN = float("nan")
HISTORY = [{"epoch": epoch, "loss": 3 / epoch, "a/task": 2 / epoch, "a/rotation": 0.1} for epoch in (1, 2, 3)]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def features(turn: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = 5 * torch.randn(3, 8, generator=draw)
    first = centres[labels] + torch.randn(60, 8, generator=draw)
    second = first @ torch.linalg.qr(torch.randn(8, 8, generator=draw)).Q if turn else first + 0.1
    return first, second, labels


DRAWINGS = {
    "heat map": lambda ax: plots.heat_map(np.eye(2), ["a", "b"], ["a", "b"], native=np.eye(2, dtype=bool), ax=ax),
    "bars": lambda ax: plots.bars({"one": 0.5, "two": NAN}, intervals={"one": (0.4, 0.6)}, native=0.7, ax=ax),
    "lines": lambda ax: plots.lines([1, 2], {"s": [0.1, NAN]}, intervals={"s": ([0, 0.1], [0.2, 0.3])}, ax=ax),
    "curves": lambda ax: plots.training_curves(HISTORY, ax=ax),
    "features": lambda ax: feature_plot(*features(), ["x", "y", "z"], ax=ax),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_draws_on_a_given_axis_or_its_own_and_does_not_show(draw, monkeypatch) -> None:
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    own_figure, own_axis = plt.subplots()
    assert draw(own_axis) == (own_figure, own_axis)
    other_figure, _ = draw(None)
    assert other_figure is not own_figure
    stream = io.BytesIO()
    other_figure.savefig(stream)
    assert np.asarray(Image.open(stream).convert("L")).std() > 10  # something is on it


def test_native_cells_are_framed_in_black_and_white() -> None:
    _, axis = plots.heat_map(np.full((2, 2), 0.5), ["a", "b"], ["a", "b"], native=np.eye(2, dtype=bool))
    edges = [to_rgb(patch.get_edgecolor()) for patch in axis.patches]
    assert edges == [(0, 0, 0), (1, 1, 1)] * 2
    assert [text.get_weight() for text in axis.texts] == ["bold", "normal", "normal", "bold"]


def test_bars_say_their_numbers_and_references() -> None:
    _, axis = plots.bars({"one": 0.5, "two": NAN}, intervals={"one": (0.4, 0.6)}, chance=0.1, native=0.7)
    assert [patch.get_height() for patch in axis.patches] == [0.5, 0.0]
    assert [text.get_text() for text in axis.texts] == ["0.50", "n/a", "native", "chance"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["one", "two"]


def test_lines_differ_in_mark_and_style_besides_colour() -> None:
    _, axis = plots.lines([16, 64], {name: [0.1, 0.2] for name in "abc"}, xlabel="feature dim", log=True)
    assert len({(line.get_marker(), line.get_linestyle()) for line in axis.lines}) == 3
    assert axis.get_xlabel() == "feature dim"
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["16", "64"]


def test_curves_take_the_task_losses_or_what_is_asked_for() -> None:
    _, axis = plots.training_curves(HISTORY)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a/task"]
    assert axis.lines[0].get_ydata() == pytest.approx([2, 1, 2 / 3])
    _, axis = plots.training_curves([{"loss": 3.0}, {"loss": 2.0}])
    assert axis.lines[0].get_xdata() == pytest.approx([1, 2])
    _, axis = plots.training_curves(HISTORY, ["a/rotation"])
    assert len(axis.lines) == 1


def test_the_plane_is_that_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    first, second, _ = features(turn=True)
    circles, triangles, share = principal_plane(first, second)
    model = PCA(2).fit(torch.cat([first, second]).numpy())
    assert np.abs(circles) == pytest.approx(np.abs(model.transform(first.numpy())), abs=1e-4)
    assert np.abs(triangles) == pytest.approx(np.abs(model.transform(second.numpy())), abs=1e-4)
    assert share == pytest.approx(model.explained_variance_ratio_.sum(), abs=1e-5)


def test_compatible_features_lie_together_and_others_do_not() -> None:
    def distance(turn: bool) -> float:
        first, second, _ = features(turn)
        circles, triangles, _ = principal_plane(first, second)
        return float(np.linalg.norm(circles - triangles, axis=1).mean())

    assert distance(False) < 0.5 < 2 < distance(True)


def test_names_are_shortened_and_are_no_formulas() -> None:
    _, axis = plots.bars({"$x_": 0.5, "a" * 40: 0.5})
    first, second = (tick.get_text() for tick in axis.get_xticklabels())
    assert first == r"\$x_"
    assert second == "a" * 27 + "…"
    axis.figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.bars({}), "values by name"),
        (lambda: plots.lines([1, 2], {"s": [1]}), "2 values of 's', got 1"),
        (lambda: plots.lines([], {}), "at least one series"),
        (lambda: plots.training_curves([]), "one record per epoch"),
        (lambda: plots.training_curves(HISTORY, ["b/task"]), "b/task, got epoch"),
        (lambda: principal_plane(torch.zeros(5, 3), torch.zeros(5, 4)), "two of one shape"),
    ],
)
def test_refuses_what_cannot_be_drawn(draw, message) -> None:
    with pytest.raises(tc.errors.DataError, match=message):
        draw()
