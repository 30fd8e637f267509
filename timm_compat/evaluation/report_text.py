"""Text and tables of a report, in reading order, and the files that it is saved to."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_compat.evaluation.baselines import BASELINE_TITLES
from timm_compat.evaluation.document import Block, Code, Heading, Paragraph, Picture, Table, to_html, to_markdown
from timm_compat.evaluation.intervals import CONFIDENCE
from timm_compat.evaluation.matrix import CROSS_SPACE_SIGN, NOT_MEASURED
from timm_compat.evaluation.report import EvaluationReport
from timm_compat.evaluation.scores import Array, gap_points, mean_of_measured
from timm_compat.storage.files import new_folder

HTML_FILE, MARKDOWN_FILE, JSON_FILE = "report.html", "report.md", "report.json"
OWN_PAIR = "own pair"
SCORES = {
    "native": "accuracy of extractors under their own heads",
    "recombined": "accuracy of all other pairs",
    "chance": "accuracy of guessing one of a head's classes",
    "compatibility": "(recombined - chance) / (the head on its own extractor - chance); 1 is as good as native",
    "gap_points": "percentage points below the head on its own extractor",
    "negative_flip_rate": "share of images that the head gets right on its own extractor and wrong on another",
    "relative_negative_flip_rate": "the same over that of two models that err independently",
    "calibration_error_native": "expected calibration error, 15 bins, own pairs",
    "calibration_error_recombined": "expected calibration error, 15 bins, other pairs",
    "average_compatibility": "AC: share of later extractors that beat an earlier head's own; ties do not count",
    "average_accuracy": "AA: mean over later or equal extractors under earlier heads",
    "backward_compatibility": "BC: what earlier heads gain from later extractors",
    "forward_compatibility": "FC: what earlier extractors gain from later heads",
    "compatibility_cost": "own accuracy of the same networks trained without regard to compatibility, less ours",
    "update_gain": "(cross - old) / (later network without regard to compatibility - old), over later extractors",
    "stitching_penalty_of_baseline": "error of the trained stitching baseline over that of the head's own network",
}


def save_report(report: EvaluationReport, folder: str | Path) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and the pictures to a new folder, in one step.

    Raises:
        OutputExistsError: the folder holds something already.
    """
    with new_folder(folder) as partial:
        (partial / HTML_FILE).write_text(report_html(report), encoding="utf-8")
        (partial / MARKDOWN_FILE).write_text(report_markdown(report), encoding="utf-8")
        (partial / JSON_FILE).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        for name, (png, _) in report.pictures.items():
            (partial / name).write_bytes(png)
    return Path(folder)


def report_html(report: EvaluationReport) -> str:
    """One self-contained page."""
    return to_html("timm-compat: recombination report", blocks(report))


def report_markdown(report: EvaluationReport) -> str:
    """The same; the pictures are named, and stand beside it."""
    return to_markdown(blocks(report))


def summary_text(report: EvaluationReport) -> str:
    """The scores and the baselines' means in a few lines, for a terminal."""
    found = report.scores()
    lines = [f"{name.replace('_', ' ')} {found[name]:.3f}" for name in SCORES if name in found]
    means = [(baseline.name, baseline.recombined_accuracy(report.matrix.native)) for baseline in report.baselines]
    return "\n".join(lines + [f"baseline {BASELINE_TITLES[name]} {mean:.3f}" for name, mean in means])


def blocks(report: EvaluationReport) -> list[Block]:
    """The whole report."""
    return [
        Heading("Recombination report", 1),
        Paragraph(_summary(report)),
        *_matrix(report),
        *_scores(report),
        *_baselines(report),
        *_retrieval(report),
        *_similarity(report),
        *_pictures(report),
        *_provenance(report),
    ]


def _summary(report: EvaluationReport) -> str:
    matrix, found = report.matrix, report.scores()
    images = f"{max(matrix.counts)} test images of {report.data['name']}"
    text = f"{len(matrix.rows)} extractors under {len(matrix.columns)} heads on {images}."
    if np.isnan(found["recombined"]) or np.isnan(found["native"]):
        return text
    return (
        f"{text} Native pairs score {found['native']:.3f} on average, recombined ones {found['recombined']:.3f}; "
        f"chance is {found['chance']:.3f}."
    )


def _matrix(report: EvaluationReport) -> Iterator[Block]:
    matrix = report.matrix
    low, high = matrix.intervals()
    yield Heading("Accuracy of every extractor under every head")
    yield _grid(report, [[_cell(report, i, j) for j in range(len(matrix.columns))] for i in range(len(matrix.rows))])
    yield Paragraph("Rows are extractors, columns are heads; an extractor under the head of its own name is marked.")
    if matrix.cross_space is not None and matrix.cross_space.any():
        yield Paragraph(f"{CROSS_SPACE_SIGN} extractor and head of different spaces, not compatible: a baseline.")
    for (i, j), reason in matrix.reasons.items():
        yield Paragraph(f"{NOT_MEASURED}, {matrix.rows[i]} under {matrix.columns[j]}: {reason}.")
    yield Heading(f"Wilson intervals over the images, {CONFIDENCE:.0%}")
    yield _grid(report, _each(matrix.accuracy, lambda i, j: f"{low[i, j]:.3f} to {high[i, j]:.3f}"))
    counts = zip(matrix.columns, matrix.counts, strict=True)
    yield Paragraph(f"Images behind each column: {', '.join(f'{name}: {count}' for name, count in counts)}.")
    yield Heading("Compatibility: share of the head's native accuracy above chance that is kept")
    yield _grid(report, _numbers(matrix.compatibility))


def _scores(report: EvaluationReport) -> Iterator[Block]:
    matrix, found = report.matrix, report.scores()
    rows = [[name.replace("_", " "), f"{found[name]:.3f}", SCORES[name]] for name in SCORES if name in found]
    yield Heading("Scores")
    yield Table([["score", "mean", "meaning"], *rows], text_columns=frozenset({2}))
    if not np.isnan(found["recombined_low"]):
        ends = f"{found['recombined_low']:.3f} to {found['recombined_high']:.3f}"
        yield Paragraph(f"Mean over the recombined pairs, by bootstrap over pairs, {CONFIDENCE:.0%}: {ends}.")
    if "average_compatibility" in found:
        yield Paragraph(
            f"AC, AA, BC, FC and update gain take the parts in this order, oldest first: {', '.join(matrix.rows)}."
        )
    if matrix.predictions is not None:
        yield Heading("Negative flips when a head's own extractor is replaced")
        yield _grid(report, _numbers(matrix.negative_flips()))
        yield Heading("Expected calibration error")
        yield _grid(report, _numbers(matrix.calibration_errors()))


def _baselines(report: EvaluationReport) -> Iterator[Block]:
    if not report.baselines:
        return
    matrix = report.matrix
    gap = mean_of_measured(gap_points(matrix.accuracy, matrix.native)[~matrix.native])
    rows = [["no baseline, the parts as they are", f"{matrix.recombined_accuracy:.3f}", f"{gap:.1f}", "0.0", "nothing"]]
    for baseline in report.baselines:
        values = np.where(matrix.native, matrix.accuracy, baseline.accuracy)
        gap = mean_of_measured(gap_points(values, matrix.native)[~matrix.native])
        mean = baseline.recombined_accuracy(matrix.native)
        needs = "; ".join(baseline.needs)
        rows.append([BASELINE_TITLES[baseline.name], f"{mean:.3f}", f"{gap:.1f}", f"{baseline.seconds:.1f}", needs])
    yield Heading("Baselines on the same test images")
    heading = ["exchanged pairs", "accuracy", "gap in points", "seconds", "needs"]
    yield Table([heading, *rows], text_columns=frozenset({4}))
    yield Paragraph(f"Fitted on {report.data['train_images']} images of {report.data['train_name']}.")
    for baseline in report.baselines:
        title = BASELINE_TITLES[baseline.name]
        yield Heading(title[0].upper() + title[1:], 3)
        cells = _numbers(baseline.accuracy)
        for i, j in np.argwhere(matrix.native & np.isnan(baseline.accuracy)).tolist():
            cells[i][j] = OWN_PAIR
        yield _grid(report, cells)


def _retrieval(report: EvaluationReport) -> Iterator[Block]:
    if report.retrieval is None:
        return
    names, scores = report.retrieval.names, report.retrieval.scores
    some = next(iter(scores.values()))
    yield Heading("Retrieval: queries from one extractor (rows), gallery from another (columns)")
    for title, number in (("CMC@1", lambda pair: scores[pair].cmc[1]), ("mAP", _precision(scores))):
        values = np.array(
            [[number((row, column)) if (row, column) in scores else np.nan for column in names] for row in names]
        )
        yield Paragraph(f"{title}:")
        yield Table(
            [["queries \\ gallery", *names], *([name, *row] for name, row in zip(names, _numbers(values), strict=True))]
        )
    own = "left out" if some.self_excluded else "kept"
    length = "brought to length 1" if some.normalized else "as they are"
    yield Paragraph(
        f"{some.num_queries} queries, gallery of {some.num_gallery}; the query's own image {own}; {some.distance} "
        f"distance of features {length}; {'all ranks' if some.depth is None else f'the first {some.depth} ranks'}."
    )


def _precision(scores: Mapping[tuple[str, str], Any]) -> Any:
    return lambda pair: scores[pair].mean_average_precision


def _similarity(report: EvaluationReport) -> Iterator[Block]:
    if report.cka is None:
        return
    names = report.matrix.rows
    yield Heading("Linear CKA between extractors")
    rows = [[name, *row] for name, row in zip(names, _numbers(report.cka), strict=True)]
    yield Table([["", *names], *rows])
    yield Paragraph("1: the same features but for a rotation and a scale. Kornblith et al., ICML 2019.")


def _pictures(report: EvaluationReport) -> Iterator[Block]:
    if report.pictures:
        yield Heading("Pictures")
    for file, (png, caption) in report.pictures.items():
        yield Picture(file, png, caption)


def _provenance(report: EvaluationReport) -> Iterator[Block]:
    yield Heading("How this report was made")
    yield Code(report.command)
    yield Paragraph(f"{report.created}, {report.seconds:.1f} s.")
    heading = ["part", "role", "space", "sha256", "what", "source"]
    parts = [
        [part.name, part.role, part.space, part.sha256, part.description, part.source] for part in report.components
    ]
    yield Table([heading, *parts], text_columns=frozenset(range(1, len(heading))))
    for title, facts in (("data", report.data), ("version of", report.versions)):
        yield Table(
            [[title, ""], *([str(key), str(value)] for key, value in facts.items())], text_columns=frozenset({1})
        )


def _grid(report: EvaluationReport, cells: Sequence[Sequence[str]]) -> Table:
    matrix = report.matrix
    lines = [
        ["extractor \\ head", *matrix.columns],
        *([name, *row] for name, row in zip(matrix.rows, cells, strict=True)),
    ]
    native = {(int(i), int(j) + 1) for i, j in zip(*np.nonzero(matrix.native), strict=True)}
    return Table(lines, frozenset(native))


def _cell(report: EvaluationReport, row: int, column: int) -> str:
    value, crossed = report.matrix.accuracy[row, column], report.matrix.cross_space
    text = NOT_MEASURED if np.isnan(value) else f"{value:.3f}"
    return f"{text} {CROSS_SPACE_SIGN}" if crossed is not None and crossed[row, column] else text


def _numbers(values: Array) -> list[list[str]]:
    return _each(values, lambda i, j: f"{values[i, j]:.3f}")


def _each(values: Array, text: Any) -> list[list[str]]:
    rows, columns = values.shape
    return [[NOT_MEASURED if np.isnan(values[i, j]) else text(i, j) for j in range(columns)] for i in range(rows)]
