"""Two real processes measure the matrix that one process measures, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNTS = (449, 40)  # a whole batch and a part of one; nothing for the second process

PROGRAM = """
import json, torch
import timm_compat as tc
torch.set_num_threads(1)
test = tc.data.load_digits("test")
space = tc.CompatSpace(16, test.class_names, ["common_classes"])
torch.manual_seed(0)
extractors = {name: tc.create_extractor(name, space, in_chans=1, img_size=32) for name in ("test_resnet", "test_vit")}
heads = {name: tc.TaskHead(space, test.class_names[first:]) for name, first in (("test_resnet", 0), ("part", 4))}
for head in heads.values():
    torch.nn.init.normal_(head.classifier.weight)
seen = 0
def count_images(module, inputs, output):
    global seen
    seen += len(inputs[0])
for extractor in extractors.values():
    extractor.register_forward_hook(count_images)
from accelerate import PartialState
from timm_compat.evaluation.answers import extracted
from timm_compat.models.passes import passes
from timm_compat.models.run_options import RunOptions
from timm_compat.processes import summed
found = []
for count in COUNTS:
    seen, part = 0, test.subset(range(count))
    matrix = tc.recombination_matrix(extractors, heads, part)
    images = seen
    features = extracted(extractors, part)
    sums = {name: torch.zeros(16, dtype=torch.float64) for name in extractors}
    for passed in passes(list(extractors.values()), part.images.split(30), options=RunOptions(batch_size=20)):
        for name, output in zip(extractors, passed.outputs):
            sums[name] += output.double().sum(dim=0)
    found.append({
        "seen": images, "matrix": matrix.to_dict(), "calibration": matrix.calibration_errors().tolist(),
        "sums": {name: summed(value).tolist() for name, value in sums.items()},
        "features": {name: value.double().sum(dim=0).tolist() for name, value in features.items()},
    })
state = PartialState()
result = {"rank": state.process_index, "processes": state.num_processes, "found": found}
print("RESULT" + json.dumps(result), flush=True)
"""


def launch(processes: int, program: Path) -> list[dict]:
    words = [str(program)]
    if processes > 1:
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=280, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    decoder = json.JSONDecoder()
    results = [decoder.raw_decode(line)[0] for line in done.stdout.split("RESULT")[1:]]
    return sorted(results, key=lambda result: result["rank"])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("COUNTS", str(COUNTS)))
    (one,) = launch(1, program)
    first, second = launch(2, program)
    assert (one["processes"], first["processes"], second["processes"]) == (1, 2, 2)
    for number, count in enumerate(COUNTS):
        alone, mine, other = (result["found"][number] for result in (one, first, second))
        assert alone["seen"] == 2 * count  # two extractors, each image once
        assert mine["seen"] + other["seen"] == 2 * count
        for found in (mine, other):
            for name, expected in alone["sums"].items():  # added up in another order
                assert found["sums"][name] == pytest.approx(expected, rel=1e-6, abs=1e-6)
            assert {**found, "seen": 0, "sums": 0} == {**alone, "seen": 0, "sums": 0}
