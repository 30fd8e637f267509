"""What `import timm_compat` costs beside `import timm`, seen from fresh processes: processor time, in turn."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
LARGEST_SHARE = 0.1  # of the time of `import timm`
RUNS = 5
LAZY = {
    "matplotlib",
    "accelerate",
    "sklearn",
    "scipy",
    "huggingface_hub",
    "pydantic",
    "pydantic_core",
}  # apart from what timm itself imports

PROBE = """
import json, sys, time
start = time.process_time()
import timm
middle = time.process_time()
before = set(sys.modules)
import timm_compat
share = (time.process_time() - middle) / (middle - start)
print(json.dumps({"share": share, "new": sorted(set(sys.modules) - before)}))
"""


def probe() -> tuple[float, list[str]]:
    """Time of the second import as a share of the first one's, and the modules that it added."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, env=env, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout)
    return answer["share"], answer["new"]


@pytest.mark.slow
def test_import_is_cheap_and_lazy() -> None:
    _, new = probe()  # this run also writes the bytecode
    assert "timm_compat" in new
    late = [name for name in new if name.split(".")[0] in LAZY]
    assert not late, f"import these where they are first used: {late}"

    share = statistics.median(probe()[0] for _ in range(RUNS))
    assert share <= LARGEST_SHARE, f"import timm_compat takes {share:.2f} of the time of import timm"
