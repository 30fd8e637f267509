"""A run that was killed goes on as if nothing had happened; real processes, real kills."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import timm_compat as tc

# Trains two members for 4 epochs of 11 steps with a checkpoint every 3 steps; sleeps in each step if asked.
PROGRAM = """
import json, sys, time, torch
import timm_compat as tc
torch.set_num_threads(1)
output, resume, pause = sys.argv[1], sys.argv[2] == "resume", float(sys.argv[3])
train = tc.data.load_digits("train").subset(range(350))
space = tc.CompatSpace(16, train.class_names, ["common_classes", "rotation"])
torch.manual_seed(0)
members = [
    tc.Member(
        name,
        tc.create_extractor("test_resnet", space, in_chans=1, img_size=16, drop_rate=0.2),
        tc.TaskHead(space, train.class_names, drop_rate=0.3),
        half,
    )
    for name, half in zip("ab", train.halves(torch.Generator().manual_seed(0)), strict=True)
]
config = tc.TrainConfig(
    epochs=4, batch_size=16, random_crop=1, hflip=0.5, model_ema_decay=0.9, clip_grad=1.0, alignment="l2",
    checkpoint_steps=3, best_metric="score", output_dir=output,
)
seen = 0
def validate():
    time.sleep(pause)
    return {"score": -abs(float(members[0].head.classifier.weight.abs().sum()) - 5.0)}
if pause:
    from timm_compat.training import loop
    step = loop.Loop._train_step
    loop.Loop._train_step = lambda self, batches: (time.sleep(pause), step(self, batches))[1]
result = tc.fit(space, members, config, validate=validate, resume=resume, progress=None)
state = {"fingerprint": space.fingerprint, "digests": [m.extractor.digest() for m in members]}
print(json.dumps(state | {"history": [{k: v for k, v in r.items() if k != "seconds"} for r in result.history]}))
"""


def start(output: Path, mode: str, pause: float = 0.0, **popen) -> subprocess.Popen:
    words = [sys.executable, "-c", PROGRAM, str(output), mode, str(pause)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **popen)


def finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").glob("step-*"))


def kill_after(process: subprocess.Popen, output: Path, count: int) -> None:
    """Kill -9 as soon as the run has come to its ``count``-th checkpoint."""
    deadline = time.monotonic() + 200
    while not (names := checkpoints(output)) or int(names[-1].removeprefix("step-")) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict, Path]:
    output = tmp_path_factory.mktemp("whole") / "run"
    return finish(start(output, "new")), output


@pytest.mark.slow
class TestKilled:
    def test_resumed_run_equals_an_uninterrupted_one(self, uninterrupted, tmp_path) -> None:
        expected, whole = uninterrupted
        output = tmp_path / "run"
        for count in (6, 24):  # in the middle of the first epoch, then of the third
            kill_after(start(output, "resume", pause=0.03), output, count)
        assert finish(start(output, "resume")) == expected
        for part in ("space", "extractor-a", "head-b"):
            for file in ("model.safetensors", "config.json"):
                assert (output / part / file).read_bytes() == (whole / part / file).read_bytes()

    def test_killed_in_the_middle_of_a_write(self, uninterrupted, tmp_path) -> None:
        output = tmp_path / "run"
        kill_after(start(output, "new", pause=0.02), output, 9)
        # What such a kill leaves: a folder under its temporary name, with half a file in it.
        newest = output / "checkpoints" / checkpoints(output)[-1]
        partial = output / "checkpoints" / ".step-000000012.abcdef"
        partial.mkdir()
        (partial / "state.safetensors").write_bytes((newest / "state.safetensors").read_bytes()[:1000])
        assert finish(start(output, "resume")) == uninterrupted[0]
        assert not partial.exists()

    def test_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(self, uninterrupted, tmp_path) -> None:
        output = tmp_path / "run"
        kill_after(start(output, "new", pause=0.02), output, 9)
        newest = output / "checkpoints" / checkpoints(output)[-1] / "state.safetensors"
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
        process = start(output, "resume")
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert "is damaged" in err
        assert newest.parent.name in err
        assert json.loads(out.splitlines()[-1]) == uninterrupted[0]

    def test_full_disk_leaves_the_last_good_checkpoint(self, uninterrupted, tmp_path) -> None:
        expected, whole = uninterrupted
        output = tmp_path / "run"
        size = (whole / "checkpoints" / checkpoints(whole)[-1] / "state.safetensors").stat().st_size
        kill_after(start(output, "new", pause=0.02), output, 6)
        before = checkpoints(output)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

        process = start(output, "resume", preexec_fn=limit)
        _, err = process.communicate(timeout=240)
        assert process.returncode != 0
        assert "TrainingError" in err
        assert before[-1] in err
        assert checkpoints(output) == before
        assert finish(start(output, "resume")) == expected


def small_run(output: Path, **settings) -> tc.FitResult:
    train = settings.pop("train", None) or tc.data.load_digits("train").subset(range(64))
    space = tc.CompatSpace(8, train.class_names, ["common_classes"])
    torch.manual_seed(0)
    member = tc.Member(
        "a",
        tc.create_extractor("test_resnet", space, in_chans=1, img_size=16),
        tc.TaskHead(space, train.class_names),
        train,
    )
    resume = settings.pop("resume", False)
    config = tc.TrainConfig(**{"epochs": 2, "batch_size": 32, "output_dir": output, **settings})
    return tc.fit(space, [member], config, resume=resume, progress=None)


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
CONTROLS = 10  # of 14 runs on a CPU with avx512_bf16, plain timm was sound in one


def check_precision_is_kept(folder: Path, precision: str) -> None:
    """Resumed, a run in half precision equals the whole one; where it gives NaN, plain timm must as well."""
    settings, failure = {"mixed_precision": precision, "epochs": 3}, None
    try:
        whole = small_run(folder / "whole", **settings)
        shutil.copytree(folder / "whole", folder / "part")
        for part in ("checkpoints/step-000000006", "extractor-a", "head-a", "space"):
            shutil.rmtree(folder / "part" / part)
        resumed = small_run(folder / "part", **settings, resume=True)
    except tc.errors.TrainingError as error:
        failure = str(error)
    if failure is not None:
        sound = [plain_training_is_sound(PRECISIONS[precision], seed) for seed in range(CONTROLS)]
        assert not all(sound), f"plain timm trains under torch.autocast, fit does not: {failure}"
        assert "mixed_precision='no'" in failure
        print(f"{precision}: plain timm under torch.autocast gives NaN here too ({sound.count(False)} of {CONTROLS})")
        return
    assert resumed.space.fingerprint == whole.space.fingerprint
    assert [record["loss"] for record in resumed.history] == [record["loss"] for record in whole.history]


def plain_training_is_sound(dtype: torch.dtype, seed: int) -> bool:
    """Whether the weights stay numbers in as many steps of plain timm and PyTorch on the same images."""
    torch.manual_seed(seed)
    train = tc.data.load_digits("train").subset(range(64))
    images = torch.nn.functional.interpolate(train.images / 255, size=16)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(6):
        half = slice(32 * (step % 2), 32 * (step % 2) + 32)
        with torch.autocast("cpu", dtype):
            loss = torch.nn.functional.cross_entropy(model(images[half]), train.labels[half])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return all(bool(value.isfinite().all()) for value in model.state_dict().values())


class TestOutputFolder:
    def test_holds_log_run_checkpoints_and_components(self, tmp_path) -> None:
        result = small_run(tmp_path / "run", epochs=3, keep_checkpoints=2)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
            *("checkpoints", "extractor-a", "head-a", "history.jsonl", "run.json", "space")
        ]
        assert checkpoints(tmp_path / "run") == ["step-000000004", "step-000000006"]
        lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == list(result.history)

    def test_resuming_a_finished_run_changes_nothing(self, tmp_path) -> None:
        first = small_run(tmp_path / "run")
        digest = (tmp_path / "run" / "extractor-a" / "model.safetensors").read_bytes()
        again = small_run(tmp_path / "run", resume=True)
        assert again.history == first.history
        assert again.space.fingerprint == first.space.fingerprint
        assert (tmp_path / "run" / "extractor-a" / "model.safetensors").read_bytes() == digest

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_scaler_and_precision_are_kept(self, tmp_path, precision) -> None:
        check_precision_is_kept(tmp_path, precision)

    @pytest.mark.slow
    def test_a_machine_whose_half_precision_gives_nan_is_told_from_a_fault_of_ours(
        self, tmp_path, monkeypatch, capsys
    ) -> None:
        convolve = torch.nn.functional.conv2d

        def broken(*arguments, **keywords):
            result = convolve(*arguments, **keywords)
            if result.requires_grad and torch.is_autocast_enabled("cpu"):
                result.register_hook(lambda gradient: gradient * torch.nan)
            return result

        monkeypatch.setattr(torch.nn.functional, "conv2d", broken)
        check_precision_is_kept(tmp_path / "broken", "bf16")
        assert "plain timm under torch.autocast gives NaN here too" in capsys.readouterr().out
        monkeypatch.setitem(globals(), "plain_training_is_sound", lambda dtype, seed: True)
        with pytest.raises(AssertionError, match="fit does not: "):
            check_precision_is_kept(tmp_path / "ours", "bf16")

    def test_resuming_nothing_starts(self, tmp_path) -> None:
        assert len(small_run(tmp_path / "run", resume=True).history) == 2

    def test_other_settings_are_refused(self, tmp_path) -> None:
        small_run(tmp_path / "run")
        with pytest.raises(tc.errors.ConfigError, match=r"config.lr: 0.002 / 0.1"):
            small_run(tmp_path / "run", resume=True, lr=0.1)
        with pytest.raises(tc.errors.OutputExistsError, match="resume"):
            small_run(tmp_path / "run")

    @pytest.mark.parametrize("kind", ["arrays", "files"])
    def test_other_images_or_labels_of_the_same_number_are_refused(self, tmp_path, kind) -> None:
        digits = tc.data.load_digits("train")
        first, other = digits.subset(range(64)), digits.subset(range(64, 128))
        if kind == "files":
            for number, (image, label) in enumerate(zip(digits.images[:128, 0], digits.labels.tolist(), strict=False)):
                path = tmp_path / "set" / f"part{number // 64}" / f"c{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.numpy()).save(path)
            first, other = (
                tc.data.load_dataset("folder", tmp_path / "set", part, in_chans=1) for part in ("part0", "part1")
            )
        small_run(tmp_path / "run", train=first)
        relabelled = first.with_labels(first.labels.flip(0), first.class_names)
        for changed in (other, relabelled):
            with pytest.raises(tc.errors.ConfigError, match=r"resume: expected the settings of the run .*images\.a: '"):
                small_run(tmp_path / "run", train=changed, resume=True)
        assert len(small_run(tmp_path / "run", train=first, resume=True).history) == 2

    def test_foreign_folder_is_refused(self, tmp_path) -> None:
        (tmp_path / "mine.txt").write_text("keep")
        with pytest.raises(tc.errors.OutputExistsError):
            small_run(tmp_path, resume=True)
        with pytest.raises(tc.errors.ConfigError, match="output_dir"):
            small_run(None, resume=True)

    def test_damaged_checkpoint_is_replaced_on_the_way(self, tmp_path, caplog) -> None:
        first = small_run(tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / "step-000000004" / "state.json").write_text("{")
        for warned in (True, False):
            caplog.clear()
            again = small_run(tmp_path / "run", resume=True)
            assert ("is damaged" in caplog.text) == warned
            assert again.space.fingerprint == first.space.fingerprint

    def test_all_checkpoints_damaged(self, tmp_path) -> None:
        small_run(tmp_path / "run")
        for name in checkpoints(tmp_path / "run"):
            (tmp_path / "run" / "checkpoints" / name / "state.json").write_text("{")
        with pytest.raises(tc.errors.TrainingError, match="2 damaged"):
            small_run(tmp_path / "run", resume=True)
