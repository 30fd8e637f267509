"""Measurements kept one by one, so that a run that was stopped goes on: one file each, with its settings and origin."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm_compat.experiments import engine


def kept(
    file: Path,
    settings: Mapping[str, Any],
    work: Callable[[], Mapping[str, Any]],
    made: Callable[[], Mapping[str, Any]],
    *,
    again: bool = False,
) -> dict[str, Any]:
    """What a file holds, or else what ``work`` finds, which is written to it.

    Args:
        file: of this measurement.
        settings: what must agree for a kept measurement to stand.
        work: measures; everything is JSON values by name.
        made: where the measurement comes from, see ``origin.made``.
        again: whether what was measured with other settings is measured anew; otherwise it is refused.

    Raises:
        SystemExit: the file was measured with other settings.
    """
    asked = json.loads(json.dumps(settings))

    def measure() -> dict[str, Any]:
        start, used = time.perf_counter(), time.process_time()
        result = work()
        cost = {"wall_seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - used}
        return {**result, "settings": asked, **cost, "made": made()}

    def stands(found: Mapping[str, Any]) -> bool:
        if found["settings"] != asked and not again:
            raise SystemExit(f"{file}: expected the settings {asked}, got {found['settings']}; name another --output")
        return bool(found["settings"] == asked)

    cell: dict[str, Any] = engine.kept(file, measure, stands)
    return cell


def read_kept(folder: Path) -> list[dict[str, Any]]:
    """All measurements below a folder, in the order in which they were made."""
    files = sorted(folder.rglob("*.json"), key=lambda file: file.stat().st_mtime)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]
