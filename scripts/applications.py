#!/usr/bin/env python3
"""The three applications on photographs, from pretrained backbones: every recipe, and one page of what came out.

    scripts/applications.py --photos ROOT                    # ROOT/caltech101 and ROOT/pacs, weights from the Hub
    scripts/applications.py --photos ROOT --weights DIR      # weights from DIR/NAME.safetensors
    scripts/applications.py --show --pages scripts/results   # no run: page, picture and JSON of what is in --output

Photos are class folders: ROOT/caltech101/{train,test}/CLASS and ROOT/pacs/DOMAIN/{train,test}/CLASS. What was stopped
goes on; frozen backbones' features are kept in --output/features, so that each sees an image once.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from origin import command, made

from timm_compat.evaluation.intervals import wilson_interval
from timm_compat.experiments import (
    AdaptRecipe,
    ClassifierTransferRecipe,
    FinetuneRecipe,
    run_adaptation,
    run_classifier_transfer,
    run_finetune,
)
from timm_compat.experiments.adapt.recipe import MODES
from timm_compat.recipes.reader import read_as
from timm_compat.storage.files import replace_text
from timm_compat.table import markdown_table, spread_text

RECIPES = Path(__file__).resolve().parent / "recipes"
DOMAINS = {"art": "paintings", "cartoon": "cartoons", "sketch": "sketches"}
DIRECTIONS = {f"pacs_photo_{key}": f"photos to {word}" for key, word in DOMAINS.items()} | {
    f"pacs_{key}_photo": f"{word} to photos" for key, word in DOMAINS.items()
}
SELF_SUPERVISED = "pacs_photo_sketch"  # where the modes that a frozen backbone leaves out are run as well
LEFT_OUT = ["separate", "shared", "separate_warm", "shared_warm"]
# By recipe: what reads it, what runs it, and where its networks stand.
KINDS: Mapping[str, tuple[Any, Any, Sequence[str]]] = {
    **dict.fromkeys(DIRECTIONS, (AdaptRecipe, run_adaptation, [""])),
    "photos_upgrade": (ClassifierTransferRecipe, run_classifier_transfer, ["upgrade.old.", "upgrade.new."]),
    "finetune_caltech101": (FinetuneRecipe, run_finetune, ["split.cheap.", "joined.expensive."]),
    "photos_transfer": (
        ClassifierTransferRecipe,
        run_classifier_transfer,
        [f"transfer.networks.{name}." for name in ("lite0", "lite1", "lite2")],
    ),
}
SELF_SUPERVISED_RUN = f"{SELF_SUPERVISED}_self_supervised"
ORDER = (
    *list(DIRECTIONS)[:3],
    *("photos_upgrade", "finetune_caltech101"),
    *list(DIRECTIONS)[3:],
    "photos_transfer",
)


def run(name: str, arguments: argparse.Namespace, words: Sequence[str] = (), label: str = "") -> Any:
    """The result of a recipe, from its folder where that is finished; with its cost and origin beside it."""
    kind, function, places = KINDS[name]
    folder, text = arguments.output / (label or name), (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    local = arguments.output / "recipes" / f"{name}.yaml"
    replace_text(local, text.replace("root: data/", f"root: {arguments.photos}/"))
    changes = [f"training.cache_dir={arguments.output / 'features'}", f"output_dir={folder}", *words]
    if arguments.weights is not None:
        plain = read_as(kind, local)
        for place in places:
            backbone = _at(plain, place).backbone
            changes += [f"{place}pretrained=false", f"{place}weights={arguments.weights / backbone}.safetensors"]
    recipe, file = read_as(kind, local, changes), folder / "made.json"
    start, used = time.perf_counter(), time.process_time()
    result = function(recipe, resume=folder.exists(), progress=False)
    if not file.is_file():
        cost = {"wall_seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - used}
        replace_text(file, json.dumps({**cost, **made(command("applications.py", sys.argv[1:]), "cpu")}) + "\n")
        print(f"{folder}: {cost['wall_seconds']:.0f} s", flush=True)
    return result


def _at(recipe: Any, place: str) -> Any:
    for key in filter(None, place.split(".")):
        found = getattr(recipe, key, None)
        recipe = next(one for one in recipe if one.name == key) if found is None else found
    return recipe


def read(name: str, output: Path) -> dict[str, Any]:
    """Summary, origin and tables of a finished recipe."""
    folder = output / name
    found: dict[str, Any] = {key: json.loads((folder / f"{key}.json").read_text()) for key in ("summary", "made")}
    return {**found, "tables": (folder / "tables.md").read_text(encoding="utf-8")}


def adapt_table(found: Mapping[str, Any]) -> str:
    """Target accuracy by direction and mode: mean and spread over seeds, 95 % interval over test images."""
    modes = [mode for mode in (*MODES, "selected") if mode in found["pacs_photo_art"]["summary"]["figures"]]
    lines = [["source to target", *modes]]
    for name, words in DIRECTIONS.items():
        records = found[name]["summary"]["figures"]
        lines.append([words, *(_cell([one["target"] for one in records[mode]], 350) for mode in modes)])
    return markdown_table(lines)


def _cell(values: Sequence[float], images: int) -> str:
    low, high = wilson_interval(statistics.fmean(values), images)
    return f"{spread_text(values)} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="ROOT", help="folder with caltech101 and pacs")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="safetensors of timm's models; the Hub if left out")
    parser.add_argument("--output", type=Path, default=Path("runs/applications"), help="folder of results")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--pages", type=Path, help="folder of page, picture and JSON; --output if left out")
    arguments = parser.parse_args()
    if not arguments.show:
        if arguments.photos is None:
            parser.error("--photos: expected a folder with caltech101 and pacs, got none")
        torch.set_num_threads(arguments.threads)
        for name in ORDER:
            run(name, arguments)
        modes = [f"modes=[source_only,{','.join(LEFT_OUT)}]", "seeds=[0]"]
        run(SELF_SUPERVISED, arguments, modes, SELF_SUPERVISED_RUN)


if __name__ == "__main__":
    main()
