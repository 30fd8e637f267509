"""``timm-compat schema``: what a recipe may say, for editors."""

import argparse
import json
from typing import Any

from timm_compat.cli.recipe_options import RECIPES, kind_of


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "schema",
        help="print the JSON schema of a command's recipes",
        description="Print the JSON schema of a command's recipes. Editors complete and check a recipe by it that "
        "starts with the line: # yaml-language-server: $schema=FILE",
    )
    parser.add_argument("command", choices=list(RECIPES), help="that reads the recipe; add reads those of train")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the schema."""
    from timm_compat.recipes.reference import json_schema

    print(json.dumps(json_schema(kind_of(options.command)), indent=2))
