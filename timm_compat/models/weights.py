"""A user's own weights for a backbone: a safetensors file of the plain timm model."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from timm_compat.errors import BackboneError
from timm_compat.models.backbone import Backbone
from timm_compat.models.rebuilding import classifier_names


def load_weights(backbone: Backbone, file: str | Path) -> None:
    """Fill a backbone in place; the file's classifier, which a backbone does not have, is left aside.

    Raises:
        BackboneError: no safetensors file, or its tensors are not those of this architecture.
    """
    path, model = Path(file), backbone.model
    expected = model.state_dict()
    try:
        with safe_open(path, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"weights: expected a safetensors file at {str(path)!r}, got {error}") from error
    missing = sorted(expected.keys() - shapes.keys())
    extra = sorted(shapes.keys() - expected.keys() - classifier_names(model, backbone.model_args))
    other = sorted(name for name in expected.keys() & shapes.keys() if shapes[name] != tuple(expected[name].shape))
    if missing or extra or other:
        raise BackboneError(
            f"weights: expected the tensors of timm's {backbone.architecture} in {str(path)!r}; missing: "
            f"{_some(missing)}; not expected: {_some(extra)}; of another shape: {_some(other)}"
        )
    tensors = load_file(path)
    model.load_state_dict({name: tensors[name] for name in expected})


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
