"""``timm-compat transfer``: heads on other architectures, and on the extractor that replaces an old one."""

from functools import partial

from timm_compat.cli.recipe_options import add_experiment

add_parser = partial(
    add_experiment,
    command="transfer",
    function="run_classifier_transfer",
    help="put heads on other architectures, or on a new extractor that replaces an old one",
    description="Measure how heads do on extractors that they were not trained with, over seeds: exchanged among "
    "architectures (transfer in the recipe), or kept while a new extractor replaces an old one (upgrade).",
)
