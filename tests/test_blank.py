"""Networks that are built for weights from a file: they come out whole, and stay what was checked."""

from pathlib import Path

import pytest
import torch
from torch import nn

import timm_compat as tc
from timm_compat.models.blank import Blank, with_tensors


@pytest.mark.parametrize("name", ["test_resnet", "test_vit4", "test_nfnet"])
def test_a_loaded_network_is_the_saved_one_and_no_view_of_its_file(name: str, tmp_path: Path) -> None:
    space = tc.CompatSpace(8, ["a", "b"], ["common_classes"])
    extractor = tc.create_extractor(name, space).eval()
    space.finalize()
    extractor.save_pretrained(tmp_path / "extractor")
    state = torch.random.get_rng_state()
    loaded = tc.CompatExtractor.from_pretrained(tmp_path / "extractor")
    assert torch.equal(torch.random.get_rng_state(), state)
    for file in (tmp_path / "extractor").glob("*.safetensors"):
        with file.open("r+b") as opened:
            opened.seek(file.stat().st_size // 2)
            opened.write(bytes(file.stat().st_size // 2))
    images = torch.rand(2, *extractor.data_config["input_size"])
    with torch.no_grad():
        assert torch.equal(loaded(images), extractor(images))
    assert loaded.digest() == extractor.digest()
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in extractor.parameters()]


class Computed(nn.Module):
    """A buffer and a plain tensor that no file holds, and one parameter under two names."""

    def __init__(self, tied: bool, computed: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
        if tied:
            self.two.weight = self.one.weight
        if computed:
            self.register_buffer("table", torch.arange(3.0), persistent=False)
            self.plain = [torch.ones(2)]


@pytest.mark.parametrize(("tied", "computed"), [(False, False), (True, False), (False, True)])
def test_what_no_file_holds_is_computed(tied: bool, computed: bool) -> None:
    source = Computed(tied, computed)
    with torch.device("meta"), Blank():
        shapes = Computed(tied, computed)
    network = with_tensors(shapes, lambda: Computed(tied, computed), source.state_dict())
    assert (network is shapes) == (not tied and not computed)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), source.state_dict().values(), strict=True)
    )
    assert (network.one.weight is network.two.weight) == tied
    if computed:
        assert torch.equal(network.table, source.table)
        assert torch.equal(network.plain[0], torch.ones(2))


def test_nothing_is_drawn_for_parameters_only() -> None:
    state = torch.random.get_rng_state()
    with Blank():
        nn.Linear(4, 4)
        nn.init.normal_(nn.Parameter(torch.empty(3)))
        buffer = torch.empty(1000).fill_(2.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert buffer.unique().tolist() == [2.0]
    assert not torch.equal(nn.init.normal_(torch.zeros(3)), torch.zeros(3))
