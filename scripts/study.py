#!/usr/bin/env python3
"""How compatible, at what cost: every table of the study, resumable, on the CPU or a GPU.

    .venv/bin/python scripts/study.py --epochs 2 --images 300              # digits, embedded: a look at the machinery
    .venv/bin/python scripts/study.py --cifar10 ROOT --digits ROOT         # CPU, reduced: some 90 minutes of one core
    .venv/bin/python scripts/study.py --tables gallery --photos ROOT --weights DIR --images 1400  # real photos
    .venv/bin/python scripts/study.py --cifar10 ROOT --images 25000 --epochs 30 --mixed-precision bf16 \
        --backbones resnet18 mobilenetv3_small_100 resnet26d convnext_atto vit_tiny_patch16_224  # full size, GPU
    .venv/bin/python scripts/study.py --tables pretrained --weights DIR --photos DIR   # real weights, real photos

Results are kept one by one in --output; what is there is not measured again. Tables, pictures and study.json come from
whatever is there.
"""

import argparse
import hashlib
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kept import kept
from origin import command, made
from studies import pretrained
from studies.cells import PRETRAINED, TABLES, Row, measure, settings
from studies.pages import write_pages
from studies.photographs import Source
from studies.rows import read_cells
from studies.tasks import Scale


def cell_file(folder: Path, table: str, row: str, seed: int) -> Path:
    return folder / "cells" / f"{table}-{hashlib.sha256(row.encode()).hexdigest()[:10]}-{seed}.json"


def run(folder: Path, table: str, row: str, seed: int, what: Row, scale: Scale) -> None:
    """Measure one cell, unless it is there."""
    line = command("study.py", without_pages(sys.argv[1:]))

    def measured() -> dict[str, Any]:
        start = time.perf_counter()
        result = measure(what, scale, seed)
        print(f"{table} / {row} / seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
        return {"table": table, "row": row, "seed": seed, "result": result}

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kept(cell_file(folder, table, row, seed), settings(what, scale), measured, lambda: made(line, device))


def tables_of(arguments: argparse.Namespace) -> dict[str, dict[str, Row]]:
    """Tables whose data are at hand, by name."""
    found: dict[str, dict[str, Row]] = {name: dict(rows) for name, rows in TABLES.items()}
    if arguments.digits is None:
        del found["data_sets"]
    if arguments.weights is None or arguments.photos is None:
        del found["gallery"]
    else:
        found[PRETRAINED] = dict(pretrained.rows(Source(arguments.weights, arguments.photos, arguments.output)))
    return found


def without_pages(words: list[str]) -> list[str]:
    """What is measured, without how it is shown."""
    pairs = zip(["", *words], words, strict=False)
    return [word for before, word in pairs if "--pages" not in (before, word) and word != "--show"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = Scale()
    parser.add_argument("--cifar10", metavar="ROOT", help="folder with torchvision's CIFAR-10; the digits if left out")
    parser.add_argument("--digits", metavar="ROOT", help="folder with torchvision's MNIST and USPS")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="safetensors of timm's models over ImageNet")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folders of photos, see studies/photographs.py")
    parser.add_argument("--images", type=int, default=default.images, help="of every member, at most")
    parser.add_argument("--test-images", type=int, default=default.test_images)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--backbones", nargs="+", default=default.backbones, help="five timm models")
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--tables", nargs="+", choices=[*TABLES, PRETRAINED], help="these only")
    parser.add_argument("--rows", nargs="+", help="these only, by name")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--output", type=Path, default=Path("runs/study"), help="folder of results")
    parser.add_argument("--show", action="store_true", help="measure nothing: tables and pictures of what is there")
    parser.add_argument("--pages", type=Path, help="folder of tables and pictures; --output if left out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scale = Scale(
        arguments.cifar10, arguments.digits, arguments.photos, arguments.weights,
        arguments.images, arguments.test_images, arguments.epochs,
        arguments.batch_size, arguments.lr, tuple(arguments.backbones), arguments.mixed_precision,
    )  # fmt: skip
    tables = tables_of(arguments)
    if missing := [name for name in arguments.tables or () if name not in tables and not arguments.show]:
        parser.error(f"--tables {missing[0]}: expected --digits for data_sets, --weights and --photos for others")
    asked = [] if arguments.show else arguments.tables or tables
    for seed, table in itertools.product(arguments.seeds, asked):
        for row, what in tables[table].items():
            if arguments.rows is None or row in arguments.rows:
                run(arguments.output, table, row, seed, what, scale)
    cells = read_cells(arguments.output / "cells", {**TABLES, PRETRAINED: ()})
    write_pages(cells, arguments.pages or arguments.output, command("study.py", without_pages(sys.argv[1:])))


if __name__ == "__main__":
    main()
