"""``timm-compat adapt``: from labelled source images to unlabelled target images."""

from collections import Counter
from typing import Any

from timm_compat.applications.domain_adaptation.recipe import MODES, AdaptRecipe
from timm_compat.applications.domain_adaptation.run import COMPONENTS, SELECTED, AdaptResult, run_adaptation
from timm_compat.cli.recipe_options import add_run_command


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    add_run_command(
        commands,
        "adapt",
        AdaptRecipe,
        run_adaptation,
        _report,
        help="adapt a classifier to images of another domain, without their labels",
        description="Adapt a classifier from labelled source images to unlabelled target images, in every mode that "
        "the recipe (YAML) names, and measure each over seeds. Unlabelled images choose the mode to use.",
    )


def _report(result: AdaptResult) -> str:
    recipe, picked = result.recipe, Counter(result.selected)
    explained = {mode: MODES[mode] for mode in recipe.chosen_modes}
    explained[SELECTED] = f"what unlabelled target images choose by {recipe.select}: " + ", ".join(
        f"{mode} ({count} of {len(result.selected)})" for mode, count in picked.items()
    )
    width = max(map(len, explained))
    return "\n".join(
        [
            f"Mean over seeds {', '.join(map(str, recipe.seeds))} ± standard deviation; information in nats.",
            "",
            result.to_markdown(),
            "",
            *(f"{mode.ljust(width)}  {text}" for mode, text in explained.items()),
            "",
            "Nothing was kept: give --output DIR"
            if recipe.output_dir is None
            else f"Target extractor, head and space of each seed: {recipe.output_dir}/{COMPONENTS}",
        ]
    )
