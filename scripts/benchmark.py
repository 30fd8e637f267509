#!/usr/bin/env python3
"""Measure what the package costs beside plain timm and plain PyTorch: from inference to a GPU.

Every measurement is kept in OUTPUT/cells/TABLE/NAME.json when it is done; the same command goes on where it was
stopped, and measures again what was measured with other settings. OUTPUT then holds speed.md, speed.json, speed.png.

    .venv/bin/python scripts/benchmark.py --output runs/speed                      # all tables
    .venv/bin/python scripts/benchmark.py loading training/joint --output runs/speed    # one table, and a row
    .venv/bin/python scripts/benchmark.py gpu --device cuda --output runs/speed    # on a GPU; --small runs anywhere
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from benchmarks import gpu, inference, joining, loading, page, passes, scale, training
from kept import kept, read_kept
from origin import command, made

from timm_compat.storage.files import replace_text

TABLES = {
    "inference": inference,
    "passes": passes,
    "loading": loading,
    "joining": joining,
    "training": training,
    "scale": scale,
    "gpu": gpu,
}
# Freed memory stays with the process. glibc's own thresholds follow what was freed before, and a joint step of resnet18
# then has anything from 7,000 to 200,000 page faults of 3.5 microseconds each, whichever side is the unlucky one.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What must agree for a kept measurement to stand."""
    return {name: getattr(options, name) for name in ("device", "threads", "small", "repeats")}


def measure(options: argparse.Namespace, table: str, name: str, work: Any) -> dict[str, Any]:
    """One measurement, from its file if it is there."""

    def measured() -> dict[str, Any]:
        print(f"{table}: {name}", file=sys.stderr, flush=True)
        return {"name": name, **work()}

    file, line = options.output / "cells" / table / f"{name}.json", command("benchmark.py", sys.argv[1:])
    return kept(file, settings(options), measured, lambda: made(line, options.device), again=True)


def kept_results(output: Path) -> dict[str, dict[str, Any]]:
    """All measurements of a folder, by table and name, in the order in which they were made."""
    return {table: {cell["name"]: cell for cell in read_kept(output / "cells" / table)} for table in TABLES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)}, or TABLE/ROW; all if left out"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of measurements and pages")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of a comparison")
    parser.add_argument("--small", action="store_true", help="tiny networks and few of them: shows that it runs")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a GPU, found none; use --device cpu")
    torch.set_num_threads(options.threads)
    cells = {f"{table}/{name}": work for table in TABLES for name, work in TABLES[table].cells(options).items()}
    for asked in options.tables or TABLES:
        chosen = [cell for cell in cells if asked in (cell, cell.partition("/")[0])]
        if not chosen:
            parser.error(f"expected tables among {', '.join(TABLES)} or a row such as {next(iter(cells))}, got {asked}")
        for cell in chosen:
            table, _, name = cell.partition("/")
            measure(options, table, name, cells[cell])
    results = kept_results(options.output)
    replace_text(options.output / "speed.json", json.dumps(results, indent=1) + "\n")
    text = page.page(TABLES, results)
    replace_text(options.output / "speed.md", text)
    if any(results[name] for name in page.PICTURED):
        page.picture(results, options.output / "speed.png")
    print(text)


if __name__ == "__main__":
    if not ALLOCATOR.keys() <= os.environ.keys():  # glibc reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ALLOCATOR, **os.environ})
    main()
