"""``timm-compat finetune``: does a compatible start, a cheap head or an adapter save training on a target task?"""

from functools import partial

from timm_compat.cli.recipe_options import add_experiment

add_parser = partial(
    add_experiment,
    command="finetune",
    function="run_finetune",
    help="learn a target task with compatible parts, beside the usual way",
    description="Learn a target task from a compatible head and extractor, with a head trained on a cheap "
    "extractor, or with adapters on frozen backbones (sections of the recipe), and measure accuracy against "
    "steps, seconds, floating-point operations and memory beside the usual way.",
)
