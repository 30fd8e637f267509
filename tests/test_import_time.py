"""What `import timm_compat` costs on top of `import timm`, seen from fresh processes."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 0.15
RUNS = 5
LAZY = {"matplotlib", "accelerate", "sklearn", "scipy", "huggingface_hub"}  # apart from what timm itself imports

PROBE = """
import json, sys, time
import timm
before = set(sys.modules)
start = time.perf_counter()
import timm_compat
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "new": sorted(set(sys.modules) - before)}))
"""


def probe() -> tuple[float, list[str]]:
    """Seconds of the second import, and the modules that it added."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, env=env, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout)
    return answer["seconds"], answer["new"]


def test_import_is_cheap_and_lazy() -> None:
    _, new = probe()  # this run also writes the bytecode
    assert "timm_compat" in new
    late = [name for name in new if name.split(".")[0] in LAZY]
    assert not late, f"import these where they are first used: {late}"

    seconds = statistics.median(probe()[0] for _ in range(RUNS))
    assert seconds <= LIMIT_SECONDS, f"import timm_compat takes {seconds:.3f} s over import timm"
