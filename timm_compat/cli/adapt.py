"""``timm-compat adapt``: from labelled source images to unlabelled target images."""

from functools import partial

from timm_compat.cli.recipe_options import add_experiment

add_parser = partial(
    add_experiment,
    command="adapt",
    function="run_adaptation",
    help="adapt a classifier to images of another domain, without their labels",
    description="Adapt a classifier from labelled source images to unlabelled target images, in every mode that "
    "the recipe (YAML) names, and measure each over seeds. Unlabelled images choose the mode to use.",
)
