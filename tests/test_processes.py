"""Two real processes under Accelerate's launcher train what one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# No BatchNorm: its statistics are those of a process's own share of the batch.
PROGRAM = """
import json, sys, torch
import timm_compat as tc
torch.set_num_threads(1)
settings = json.loads(sys.argv[1])
trainable = settings.pop("trainable", "full")
train = tc.data.load_digits("train").subset(range(100))
space = tc.CompatSpace(16, train.class_names, ["common_classes", "rotation"], normalization="layer")
torch.manual_seed(0)
members = [
    tc.Member(
        name,
        tc.create_extractor("test_vit", space, in_chans=1, img_size=32, trainable=trainable),
        tc.TaskHead(space, list(classes)),
        train.of_classes(list(classes)),
    )
    for name, classes in (("a", "0123456"), ("b", "3456789"))
]
config = tc.TrainConfig(epochs=2, batch_size=16, opt="sgd", lr=0.05, **settings)
result = tc.fit(space, members, config, progress=None)
from accelerate import PartialState
state = PartialState()
names = ("loss", "a/task", "a/common_classes", "a/rotation", "b/task", "b/rotation")
print("RESULT" + json.dumps({
    "rank": state.process_index, "processes": state.num_processes, "fingerprint": space.fingerprint,
    "digests": [member.extractor.digest() for member in members],
    "losses": [[record[name] for name in names] for record in result.history],
    "weight": members[0].head.classifier.weight.double().sum(dim=1).tolist(),
}), flush=True)
"""


def launch(processes: int, program: Path, settings: dict) -> list[dict]:
    # `accelerate launch` starts several processes on GPUs only; on the CPU torchrun does, and Accelerate takes over.
    if processes == 1:
        words = ["accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1", "--mixed_precision=no"]
        words += ["--dynamo_backend=no"]
    else:
        words = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [sys.executable, "-m", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*words, str(program), json.dumps(settings)], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("RESULT")[1:]
    decoder = json.JSONDecoder()
    return sorted((decoder.raw_decode(line)[0] for line in lines), key=lambda result: result["rank"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"random_crop": 1, "hflip": 0.5},
        {"alignment": "l2", "grad_accum_steps": 2, "model_ema_decay": 0.5},
        {"trainable": "adapter", "alignment": "l2"},
    ],
)
def test_two_processes_equal_one(tmp_path, settings) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    (one,) = launch(1, program, settings)
    first, second = launch(
        2, program, {**settings, "output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    )
    assert (one["processes"], first["processes"], second["processes"]) == (1, 2, 2)
    # Equal weights on all ranks, to the bit.
    assert first["digests"] == second["digests"]
    assert first["fingerprint"] == second["fingerprint"]
    # Nothing dropped or doubled: the losses and the weights of the same batches in one process.
    for expected, found in zip(one["losses"], first["losses"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert first["weight"] == pytest.approx(one["weight"], rel=1e-3, abs=1e-5)
    assert (tmp_path / "run" / "extractor-b" / "model.safetensors").is_file()


@pytest.mark.slow
def test_batch_that_cannot_be_shared_is_refused(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("batch_size=16", "batch_size=15"))
    with pytest.raises(AssertionError, match="batch_size: expected a multiple of processes"):
        launch(2, program, {})
