"""The README's program runs as it stands, from the first line to the last."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_block_of_code_runs(tmp_path, monkeypatch, hub) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.user("hf_readersecret", "alice", "bob", "you"))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["matrix"].recombined_accuracy > 0.9
    assert names["program"].module()(names["images"][:2]).shape == (2, 10)
    assert torch.allclose(names["plain"](names["images"]), names["logits"], atol=1e-4)
