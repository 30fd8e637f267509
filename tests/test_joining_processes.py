"""Two real processes split, join, swap and probe as one does: each passes its share, and sums are added up."""

from pathlib import Path

import pytest
from test_evaluate_processes import launch

COUNT = 67  # whole batches and a part of one

PROGRAM = """
import json, torch
import timm_compat as tc
from timm_compat.models.backbone_build import build_model
torch.set_num_threads(1)
digits = tc.data.load_digits("train").subset(range(COUNT))
def classifier(name, seed):
    torch.manual_seed(seed)
    model = build_model(name, 10, img_size=(32, 32), in_chans=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        images = torch.nn.functional.interpolate(digits.images / 255, (32, 32))
        model.get_classifier().bias -= model(images).mean(dim=0)  # or one class would be all that it says
    return model
seen = 0
def count_images(module, inputs, output):
    global seen
    seen += len(inputs[0])
found = {}
old, new = classifier("test_resnet", 0), classifier("test_efficientnet", 1)
for model in (old, new):
    model.register_forward_hook(count_images)
def note(name, *tensors, **facts):
    global seen
    values = torch.cat([one.detach().flatten() for one in tensors]).tolist()
    found[name] = {"seen": seen, "values": values, **facts}
    seen = 0
names, run = digits.class_names, {"batch_size": 8}
extractor, head = tc.split(old, class_names=names, images=digits, img_size=32, **run)
note("split", extractor.interface.normalization.running_mean, extractor.interface.normalization.running_var)
joined = tc.join(
    extractor.space, new, digits.images, reference=extractor, heads=[head], class_names=names, img_size=32, **run
)
report = joined.fit_report
note("join", *joined.interface.folded(), agreement=report.agreement, r2=report.r2, images=report.num_images)
swapped = tc.swap(tc.compose(extractor, head), new, digits.images, class_names=names, img_size=32, **run)
changes = [(one.name, one.num_images, one.changed, one.mostly_to) for one in swapped.swap_report.changes]
note("swap", *swapped.extractor.interface.folded(), changes=changes)
probe = tc.linear_probe(extractor, digits, **run)
told = probe.fit_report
note("probe", probe.classifier.weight, probe.classifier.bias, accuracy=told.accuracy, penalty=told.penalty)
from accelerate import PartialState
state = PartialState()
result = {"rank": state.process_index, "processes": state.num_processes, "found": found}
print("RESULT" + json.dumps(result), flush=True)
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("COUNT", str(COUNT)))
    (one,) = launch(1, program)
    first, second = launch(2, program)
    assert (one["processes"], first["processes"], second["processes"]) == (1, 2, 2)
    for name, alone in one["found"].items():
        mine, other = first["found"][name], second["found"][name]
        assert max(mine["seen"], other["seen"]) < 0.8 * alone["seen"], (name, mine["seen"], alone["seen"])
        assert mine["values"] == other["values"], name
        assert mine["values"] == pytest.approx(alone["values"], rel=1e-3, abs=1e-4), name
        for fact in alone.keys() - {"seen", "values"}:
            expected = pytest.approx(alone[fact]) if isinstance(alone[fact], float) else alone[fact]
            assert mine[fact] == other[fact] == expected, (name, fact)
    assert len(one["found"]["swap"]["changes"]) > 2
