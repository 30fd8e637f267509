"""The result of an experiment: records by way and seed, and from them tables, figures, pictures and a report."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from timm_compat._extras import require
from timm_compat.errors import MissingExtraError
from timm_compat.storage.files import replace_text, writing
from timm_compat.table import markdown_table

RECIPE_FILE, SUMMARY_FILE, TABLES_FILE = "recipe.yaml", "summary.json", "tables.md"
DPI = 100

Record = Mapping[str, Any]  # JSON values that one way gave for one seed
Figures = Mapping[str, Mapping[str, Sequence[Record]]]
Cell = Callable[[Sequence[Any]], str]  # the text of a way's records, one per seed


@dataclass(frozen=True)
class ExperimentResult:
    """The result of a recipe.

    Attributes:
        recipe: what was run.
        figures: by part of the experiment and way, one record of JSON values per seed, in the order of the seeds.
    """

    recipe: Any
    figures: Figures
    about: ClassVar[str] = ""  # what the tables tell

    def tables(self) -> dict[str, str]:
        """Markdown by title; mean ± standard deviation over seeds."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Paragraphs below the tables."""
        return []

    def numbers(self) -> dict[str, Any]:
        """The figures as JSON values."""
        raise NotImplementedError

    def pictures(self) -> dict[str, Any]:
        """Matplotlib figures by file name.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        raise NotImplementedError

    def to_markdown(self) -> str:
        """All tables with their titles, and the notes."""
        seeds = ", ".join(map(str, self.recipe.seeds))
        spread = f"mean ± standard deviation over seeds {seeds}" if len(self.recipe.seeds) > 1 else f"seed {seeds}"
        tables = [text for title, table in self.tables().items() for text in (f"{title}:", table)]
        return "\n\n".join([f"{self.about}; {spread}.", *tables, *self.notes()])

    def summary(self) -> dict[str, Any]:
        """Seeds, folder and figures as JSON values."""
        return {"seeds": list(self.recipe.seeds), "output": self.recipe.output_dir, **self.numbers()}

    def report(self) -> str:
        """The tables for a terminal, and where the files are."""
        if self.recipe.output_dir is None:
            return f"{self.to_markdown()}\n\nNothing was kept: give --output DIR"
        folder = Path(self.recipe.output_dir)
        pictures = [f"Picture: {file}" for file in sorted(folder.glob("*.png"))]
        return "\n".join([self.to_markdown(), "", *pictures, f"Components, results and recipe: {folder}"])

    def save(self) -> None:
        """Write tables, figures and, where Matplotlib is installed, pictures into the output folder, if any."""
        if self.recipe.output_dir is None:
            return
        folder = Path(self.recipe.output_dir)
        replace_text(folder / SUMMARY_FILE, json.dumps(self.summary(), indent=2) + "\n")
        replace_text(folder / TABLES_FILE, self.to_markdown() + "\n")
        with suppress(MissingExtraError):
            for name, figure in self.pictures().items():
                write_figure(figure, folder / name)


def write_figure(figure: Any, file: Path) -> None:
    """Write a Matplotlib figure, and close it."""
    with writing(file):
        figure.savefig(file, dpi=DPI)
    require("matplotlib.pyplot", "plots").close(figure)


def way_table(
    corner: str,
    ways: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Cell],
    first: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A Markdown table with a row per way; ``first`` holds further rows before these, by name and heading."""
    lines = [[name, *(row.get(column, "") for column in columns)] for name, row in (first or {}).items()]
    lines += [[way, *(cell(found) for cell in columns.values())] for way, found in ways.items()]
    return markdown_table([[corner, *columns], *lines])
