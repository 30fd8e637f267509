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
from timm_compat.evaluation.plots import COLOURS
from timm_compat.experiments import (
    AdaptRecipe,
    ClassifierTransferRecipe,
    FinetuneRecipe,
    read_recipe,
    run_adaptation,
    run_classifier_transfer,
    run_finetune,
)
from timm_compat.experiments.adapt.recipe import MODES
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

OLD = "on lite0, the old network"
WAYS = {
    "unconstrained": "on lite2, nothing done",
    "classes": "joined by the classes, no image",
    "joined": "joined once, on Caltech-101's photos",
    "joined_each": "joined per head, on its own photos",
    "retrained": "heads retrained with labels",
}
INTRODUCTION = """# The three applications on photographs

Pretrained backbones that stay as they came (timm's tf_efficientnet_lite0, 1 and 2), class folders of photos, and what
`adapt`, `transfer` and `finetune` make of them without fine-tuning a backbone. Mean ± standard deviation over seeds,
each of which draws four fifths of PACS' training photos and 300 of Caltech-101's; test photos are always the same."""
ADAPT = """Source: a linear probe on lite0's features of labelled photos of one domain of PACS. Target: photos of
another domain, whose labels only `target_supervised`, the ceiling, looks at. Accuracy on the target's test photos; in
parentheses the 95 % interval that as many test photos allow (Wilson), which seeds know nothing of."""
PUBLISHED = """Published beside it, of fine-tuned ResNet-18 from ImageNet: 52.3 % is the mean of the three targets from
photos, 76.9 from paintings, 77.9 from cartoons, 53.7 from sketches, with augmentation that never sees a target (Wang et
al., "Learning to diversify for single domain generalization", ICCV 2021, arXiv 2108.11726, figures of its code's
README). Ours is another protocol: at most 100 photos a class, halved for training and testing, where theirs trains and
tests on the whole of PACS (9,991 images); a frozen backbone of another family, and unlabelled target photos.
Source-free adaptation of fine-tuned networks on PACS (Ahmed et al., arXiv 2103.15973; Litrico et al., CVPR 2023, arXiv
2303.03770) has tables by direction, which were not at hand here."""
SECTIONS = (
    (
        "Upgrade: old heads on a larger network",
        "Five heads were trained on lite0, over the objects of Caltech-101 (500 photos, one draw; 500 test) and over "
        "each domain of PACS; lite2 takes its place under all of them. No join sees a label; the images alone have a "
        "say where a join's own report says that they serve its head better, as on sketches.",
        "photos_upgrade",
    ),
    (
        "Transfer: heads on other networks",
        "Three networks, each with a head of its own task: lite0 photos, lite1 paintings, lite2 cartoons.",
        "photos_transfer",
    ),
    (
        "Finetune: a head from a cheap network runs on an expensive one",
        "lite0 at 96 pixels is cheap; lite2 at 260 is expensive and clearly better at Caltech-101's objects (300 "
        "labelled photos, 500 test). It joins lite0's space through ImageNet's classes and the same photos "
        "without labels, a pass that is not counted here: for one task alone it costs what a head trained on "
        "lite2 does, so it pays where one join serves several heads, or where heads are trained by others. At "
        "lite0's own 224 pixels the two networks are nearly equal (0.900 and 0.910 from all training photos), and "
        "nothing is to be gained.",
        "finetune_caltech101",
    ),
)
LIMITS = """One family of networks, small sets, and the learning rate of the pseudo-labels (1e-4, not 1e-3) was chosen
on one draw of the same test photos. Fine-tuning a whole backbone on the target is what published adaptation does, and
was not run: 224 pixels take too long on two cores."""


def run(name: str, arguments: argparse.Namespace, words: Sequence[str] = (), label: str = "") -> Any:
    """The result of a recipe, from its folder where that is finished; with its cost and origin beside it."""
    kind, function, places = KINDS[name]
    folder, text = arguments.output / (label or name), (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    local = arguments.output / "recipes" / f"{name}.yaml"
    replace_text(local, text.replace("root: data/", f"root: {arguments.photos}/"))
    changes = [f"training.cache_dir={arguments.output / 'features'}", f"output_dir={folder}", *words]
    if arguments.weights is not None:
        plain = read_recipe(kind, local)
        for place in places:
            backbone = _at(plain, place).backbone
            changes += [f"{place}pretrained=false", f"{place}weights={arguments.weights / backbone}.safetensors"]
    recipe, file = read_recipe(kind, local, changes), folder / "made.json"
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


def directions(found: Mapping[str, Any]) -> dict[str, str]:
    """What was adapted, in words, by recipe."""
    return {name: words for name, words in DIRECTIONS.items() if name in found}


def adapt_table(found: Mapping[str, Any]) -> str:
    """Target accuracy by direction and mode: mean and spread over seeds, 95 % interval over test images."""
    modes = [mode for mode in (*MODES, "selected") if mode in found["pacs_photo_art"]["summary"]["figures"]]
    lines = [["source to target", *modes]]
    for name, words in directions(found).items():
        records = found[name]["summary"]["figures"]
        lines.append([words, *(_cell([one["target"] for one in records[mode]], 350) for mode in modes)])
    return markdown_table(lines)


def upgrade_table(found: Mapping[str, Any]) -> str:
    """Old heads on the new network by way: accuracy, flips, and what it asks for."""
    upgrade = found["summary"]["upgrade"]
    heads = list(upgrade["old"])
    lines = [["way", *heads, "negative flips", "labels once more"]]
    lines.append([OLD, *(spread_text(upgrade["old"][head]) for head in heads), "", ""])
    for way, record in upgrade["ways"].items():
        accuracies = (spread_text(record[head]) for head in heads)
        lines.append([WAYS[way], *accuracies, spread_text(record["flips"]), f"{record['labels'][0]:,.0f}"])
    return markdown_table(lines)


def _cell(values: Sequence[float], images: int) -> str:
    low, high = wilson_interval(statistics.fmean(values), images)
    return f"{spread_text(values)} ({low:.2f} to {high:.2f})"


def page(found: Mapping[str, Any], line: str) -> str:
    """The page, in Markdown."""
    made_by = [one["made"] for one in found.values()]
    first = made_by[0]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    minutes = sum(one["processor_seconds"] for one in made_by) / 60
    commits, dates = (", ".join(sorted({one[key] for one in made_by})) for key in ("commit", "date"))
    facts = (
        f"`{line}`: {minutes:.0f} minutes of processor time in the last sitting of each; "
        f"{first['machine']['cpu']}, {first['machine']['cores']} cores shared with other work, {first['threads']} "
        f"thread; commits {commits}; {versions}; {dates}. Recipes: `scripts/recipes/NAME.yaml`."
    )
    parts = [INTRODUCTION, facts, "![accuracy by what is done](applications.png)", "## Adapt", ADAPT]
    parts += [adapt_table(found), _means(found), PUBLISHED]
    for title, text, name in (section for section in SECTIONS if section[2] in found):
        shown = upgrade_table(found[name]) if name == "photos_upgrade" else found[name]["tables"].strip()
        parts += [f"## {title}", f"`{name}.yaml`. {text}", shown]
    return "\n\n".join([*parts, "## Where it does not help", *_failures(found)]) + "\n"


def _mean(found: Mapping[str, Any], name: str, mode: str) -> float:
    return statistics.fmean(one["target"] for one in found[name]["summary"]["figures"][mode])


def _means(found: Mapping[str, Any]) -> str:
    """What the three directions from photos come to, as others state it."""
    names = [name for name in directions(found) if name.startswith("pacs_photo")]
    modes = ("source_only", "selected", "target_supervised")
    plain, chosen, best = (statistics.fmean(_mean(found, name, mode) for name in names) for mode in modes)
    return f"From photos, mean of three targets: source only {plain:.3f}, selected {chosen:.3f}, supervised {best:.3f}."


def _failures(found: Mapping[str, Any]) -> list[str]:
    """What the figures say against it."""
    lines = []
    for name, words in directions(found).items():
        figures = found[name]["summary"]["figures"]
        plain, chosen, best = (_mean(found, name, mode) for mode in ("source_only", "selected", "target_supervised"))
        worse = [mode for mode in figures if _mean(found, name, mode) < plain]
        gap = f"{words}: {100 * (best - chosen):.1f} points below the head with target labels"
        lines.append(f"- {gap}{'; worse than doing nothing: ' + ', '.join(worse) if worse else ''}.")
    told = []
    if SELF_SUPERVISED_RUN in found:
        records = found[SELF_SUPERVISED_RUN]["summary"]["figures"]
        modes = ", ".join(f"{mode} {records[mode][0]['target']:.3f}" for mode in ("source_only", *LEFT_OUT))
        told = [f"Self-supervision on a frozen backbone (photos to sketches, seed 0): {modes}."]
    return ["\n".join(lines), *told, LIMITS]


def picture(found: Mapping[str, Any]) -> Any:
    """Adaptation by direction, and old heads on the new network by way; bars are means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.4), layout="constrained")
    modes = ("source_only", "normalized", "batchnorm", "pseudo_labels", "target_supervised")
    adapted = {
        mode: [[one["target"] for one in found[name]["summary"]["figures"][mode]] for name in directions(found)]
        for mode in modes
    }
    grouped(left, list(directions(found).values()), adapted, "target accuracy")
    upgrade = found["photos_upgrade"]["summary"]["upgrade"]
    heads = list(upgrade["old"])
    ways = {OLD: [upgrade["old"][head] for head in heads]}
    ways |= {WAYS[way]: [record[head] for head in heads] for way, record in upgrade["ways"].items()}
    grouped(right, [f"head {head}" for head in heads], ways, "accuracy, lite0's heads on lite2")
    return figure


def grouped(axis: Any, places: Sequence[str], bars: Mapping[str, Sequence[Sequence[float]]], label: str) -> None:
    """A group of bars a place; a bar is a mean, its line reaches from the least to the largest."""
    width = 0.8 / len(bars)
    for number, (name, values) in enumerate(bars.items()):
        means = [statistics.fmean(one) for one in values]
        ends = [
            [max(0.0, mean - min(one)) for mean, one in zip(means, values, strict=True)],
            [max(0.0, max(one) - mean) for mean, one in zip(means, values, strict=True)],
        ]
        along = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(places))]
        axis.bar(along, means, width, yerr=ends, label=name, color=COLOURS[number % len(COLOURS)])
    axis.set_xticks(range(len(places)), places, rotation=20, ha="right")
    axis.set(ylabel=label, ylim=(0, 1.35))
    axis.legend(fontsize=8, ncols=2, loc="upper center")


def write(arguments: argparse.Namespace) -> None:
    """Page, picture and JSON."""
    folder = arguments.pages or arguments.output
    done = [name for name in (*ORDER, SELF_SUPERVISED_RUN) if (arguments.output / name / "made.json").is_file()]
    found = {name: read(name, arguments.output) for name in done}
    line = found[ORDER[0]]["made"]["command"]
    replace_text(folder / "applications.md", page(found, line))
    kept = {name: {"summary": _placeless(one["summary"]), "made": one["made"]} for name, one in found.items()}
    replace_text(folder / "applications.json", json.dumps(kept, separators=(",", ":")) + "\n")
    picture(found).savefig(folder / "applications.png", dpi=80)


def _placeless(summary: Mapping[str, Any]) -> dict[str, Any]:
    # Where it was measured is nobody's business.
    return {key: value for key, value in summary.items() if key != "output"}


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
    write(arguments)


if __name__ == "__main__":
    main()
