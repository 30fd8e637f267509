"""A composed model as one file that runs without this package: ONNX, or PyTorch's own export format."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timm_compat._extras import require
from timm_compat.data.raw_batches import RawImages, raw_batches
from timm_compat.data.transforms import evaluation_transform
from timm_compat.errors import ConfigError, ExportError, OutputExistsError
from timm_compat.models.backbone import TIMM_ERRORS
from timm_compat.models.composed import CompatModel, plainest
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.passes import prepare
from timm_compat.models.run_options import home_of
from timm_compat.storage.files import replaced_file

SUFFIXES = (".onnx", ".pt2")
TOLERANCE = 1e-3  # of the largest logit: other kernels add up in another order
EXAMPLES = 3  # images, not the batch that is exported with, so that a batch size that was fixed is noticed
METADATA = "timm_compat.json"  # name within a .pt2 file


def check_export(file: str | Path) -> Path:
    """The file as a path, if it is new and can be exported to here.

    Raises:
        ConfigError: another suffix than .onnx or .pt2.
        MissingExtraError: a package that ONNX needs is missing.
        OutputExistsError: the file exists.
    """
    path = Path(file)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"export: expected a file that ends in {' or '.join(SUFFIXES)}, got {str(path)!r}")
    if path.suffix == ".onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            require(package, "export")
    if path.exists() or path.is_symlink():
        raise OutputExistsError(f"expected a new file, got {str(path)!r}, which exists; choose another name or move it")
    return path


@torch.no_grad()
def export_model(model: CompatModel, file: str | Path, images: RawImages | None = None) -> Path:
    """Write a classifier to a file that runs without this package, for any batch size; it is kept if it gives the same.

    The file holds the preprocessing (timm's settings) and the class names as metadata: in ONNX as the properties
    ``preprocessing`` and ``class_names``, in a .pt2 file as the extra file ``timm_compat.json``.

    Args:
        model: left as it is.
        file: new; ".onnx" (with extra ``export``) or ".pt2" (``torch.export.load``).
        images: raw images (see ``extract_features``), on the first three of which both are compared; random ones if
            None.

    Raises:
        ConfigError: another suffix.
        DataError: no image, or one that cannot be decoded.
        ExportError: PyTorch cannot export the network, or the exported one gives other logits.
        MissingExtraError: a package that ONNX needs is missing.
        OutputExistsError: the file exists.
    """
    path = check_export(file)
    size = model.extractor.backbone.input_size
    network = plainest(model)
    examples = _examples(model.extractor, images).to(home_of(network))
    facts = {
        "preprocessing": model.extractor.data_config,
        "class_names": list(model.class_names),
        "input": "images (B, C, H, W), float32, scaled to 0 to 1 and normalised by mean and std",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with evaluating(network), replaced_file(path) as partial:
        expected = network(examples)
        write = _write_onnx if path.suffix == ".onnx" else _write_program
        try:
            with warnings.catch_warnings():  # torch's own deprecations, of which nobody here can do anything
                warnings.simplefilter("ignore")
                found = write(network, torch.zeros(2, *size, device=examples.device), partial, facts, examples)
        except TIMM_ERRORS as error:  # those of exporters derive from RuntimeError
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(
                f"{model.extractor.architecture}: PyTorch cannot write it as {path.suffix} ({first:.200}); try "
                f"{' or '.join(other for other in SUFFIXES if other != path.suffix)}, or keep the model composed"
            ) from error
        difference = float((found.to(expected) - expected).abs().max()) / float(expected.abs().max())
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{model.extractor.architecture}: expected the exported network to give the same logits, got others "
                f"(by {difference:.2g} of the largest); keep the model composed"
            )
    return path


def _examples(extractor: CompatExtractor, images: RawImages | None) -> Tensor:
    """Normalised images (b, C, H, W) to compare on."""
    if images is None:
        return torch.randn(EXAMPLES, *extractor.backbone.input_size, generator=torch.Generator().manual_seed(0))
    batch = next(raw_batches(images, EXAMPLES, [evaluation_transform(extractor.data_config)]))
    return prepare(extractor, batch)


def _write_program(network: Any, example: Tensor, file: Path, facts: dict[str, Any], examples: Tensor) -> Tensor:
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(network, (example,), dynamic_shapes=(batch,))
    with file.open("wb") as stream:
        torch.export.save(program, stream, extra_files={METADATA: json.dumps(facts)})
    with file.open("rb") as stream:
        found: Tensor = torch.export.load(stream).module()(examples)
    return found


def _write_onnx(network: Any, example: Tensor, file: Path, facts: dict[str, Any], examples: Tensor) -> Tensor:
    onnx: Any = require("onnx", "export")
    runtime: Any = require("onnxruntime", "export")
    shapes = ({0: torch.export.Dim("batch")},)
    program: Any = torch.onnx.export(
        network, (example,), dynamo=True, input_names=["images"], output_names=["logits"], dynamic_shapes=shapes,
        verbose=False,
    )  # fmt: skip
    proto = program.model_proto
    for name, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    onnx.save(proto, str(file))
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": examples.cpu().numpy()})[0])
