#!/usr/bin/env python3
"""How compatible, at what cost: every table of the study, resumable, on the CPU or a GPU.

    .venv/bin/python scripts/study.py --epochs 2 --images 300              # digits, embedded: a look at the machinery
    .venv/bin/python scripts/study.py --cifar10 ROOT --digits ROOT         # CPU, reduced: some 90 minutes of one core
    .venv/bin/python scripts/study.py --tables gallery --photos ROOT --weights DIR --images 1400  # real photos
    .venv/bin/python scripts/study.py --cifar10 ROOT --images 25000 --epochs 30 --mixed-precision bf16 \
        --backbones resnet18 mobilenetv3_small_100 resnet26d convnext_atto vit_tiny_patch16_224  # full size, GPU

Results are kept one by one in --output; what is there is not measured again. Tables, pictures and study.json come from
whatever is there.
"""

import argparse
import hashlib
import json
import platform
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from origin import command, commit
from studies.cells import TABLES, measure
from studies.pages import write_pages
from studies.rows import read_cells
from studies.tasks import Scale

from timm_compat.storage.files import library_versions, replace_text

ROOTS = ("root", "digits_root", "photos_root", "weights_root")


def cell_file(folder: Path, table: str, row: str, seed: int) -> Path:
    return folder / "cells" / f"{table}-{hashlib.sha256(row.encode()).hexdigest()[:10]}-{seed}.json"


def run(folder: Path, table: str, row: str, seed: int, scale: Scale) -> None:
    """Measure one cell, unless it is there."""
    file, settings = cell_file(folder, table, row, seed), json.loads(json.dumps(asdict(scale)))
    shown = {key: found for key, found in settings.items() if key not in ROOTS or found is not None or key in ROOTS[:2]}
    shown |= {key: shown[key] is not None for key in ROOTS if key in shown}  # which data, not where it lies
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))["scale"]
        if known != shown:
            raise SystemExit(f"{file}: expected the scale {shown}, got {known}; name another --output")
        return
    start, used = time.perf_counter(), time.process_time()
    found = measure(TABLES[table][row], scale, seed)
    facts = {"table": table, "row": row, "seed": seed, "scale": shown}
    cost = {"wall_seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - used}
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps({**facts, **cost, **machine(), "result": found}) + "\n")
    print(f"{table} / {row} / seed {seed}: {cost['wall_seconds']:.0f} s", flush=True)


def without_pages(words: list[str]) -> list[str]:
    """What is measured, without how it is shown."""
    pairs = zip(["", *words], words, strict=False)
    return [word for before, word in pairs if "--pages" not in (before, word) and word != "--show"]


def machine() -> dict:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    made = {"commit": commit(), "date": date}
    return {"device": device, "python": platform.python_version(), "versions": library_versions(), **made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Scale()
    parser.add_argument("--cifar10", metavar="ROOT", help="folder with torchvision's CIFAR-10; the digits if left out")
    parser.add_argument("--digits", metavar="ROOT", help="folder with torchvision's MNIST and USPS")
    parser.add_argument("--photos", metavar="ROOT", help="folder of photos with caltech101 and pacs in it")
    parser.add_argument("--weights", metavar="DIR", help="folder with safetensors of timm's models over ImageNet")
    parser.add_argument("--images", type=int, default=default.images, help="of every member, at most")
    parser.add_argument("--test-images", type=int, default=default.test_images)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--backbones", nargs="+", default=default.backbones, help="five timm models")
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--tables", nargs="+", choices=TABLES, help="these only")
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
    given = {"data_sets": arguments.digits, "gallery": arguments.photos and arguments.weights}
    tables = [name for name in arguments.tables or TABLES if given.get(name, "none needed") is not None]
    tables = [] if arguments.show else tables
    for seed in arguments.seeds:
        for table in tables:
            for row in TABLES[table]:
                if arguments.rows is None or row in arguments.rows:
                    run(arguments.output, table, row, seed, scale)
    cells = read_cells(arguments.output / "cells", TABLES)
    write_pages(cells, arguments.pages or arguments.output, command("study.py", without_pages(sys.argv[1:])))


if __name__ == "__main__":
    main()
