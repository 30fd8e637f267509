#!/usr/bin/env python3
"""Bars of target accuracy by mode, one panel for each finished folder of `timm-compat adapt`.

    .venv/bin/python scripts/plot_adaptation.py runs/mnist_usps runs/usps_mnist --output adaptation.png \
        --titles "MNIST to USPS" "USPS to MNIST"
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from timm_compat.experiments import AdaptRecipe, AdaptResult, read_recipe, run_adaptation

PANEL_INCHES = (6.2, 3.8)


def finished(folder: Path) -> AdaptResult:
    """What the folder holds; what is missing in it would be trained now."""
    return run_adaptation(read_recipe(AdaptRecipe, folder / "recipe.yaml", [f"output_dir={folder}"]), resume=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--titles", nargs="+", help="one a folder; their names if left out")
    parser.add_argument("--output", type=Path, required=True, help="a PNG file")
    arguments = parser.parse_args()
    titles = arguments.titles or [folder.name for folder in arguments.folders]
    size = (PANEL_INCHES[0] * len(titles), PANEL_INCHES[1])
    figure, axes = plt.subplots(1, len(titles), figsize=size, layout="constrained", squeeze=False)
    for axis, title, folder in zip(axes[0], titles, arguments.folders, strict=True):
        finished(folder).plot(axis, title=title)
    figure.savefig(arguments.output, dpi=80)


if __name__ == "__main__":
    main()
