"""A user's own weights for a timm model: a safetensors file of its tensors."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from timm_compat.errors import BackboneError
from timm_compat.models.backbone import Backbone
from timm_compat.models.rebuilding import classifier_names

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar")

Shapes = Mapping[str, tuple[int, ...]]


def load_weights(backbone: Backbone, file: str | Path) -> None:
    """Fill a backbone in place; the file's classifier, which a backbone does not have, is ignored.

    Raises:
        BackboneError: no safetensors file, or its tensors are not those of this architecture.
    """
    _fill(backbone.model, file, tensor_shapes(file), classifier_names(backbone.model, backbone.model_args))


def load_classifier(model: Any, file: str | Path) -> None:
    """Fill a timm model in place, its classifier too.

    Raises:
        BackboneError: no safetensors file, or its tensors are not those of this architecture and number of classes.
    """
    _fill(model, file, tensor_shapes(file))


def count_classes(model: Any, file: str | Path) -> int:
    """Number of classes of the classifier in a file.

    Args:
        model: a timm model of the file's architecture, with any classifier.
        file: safetensors.

    Raises:
        BackboneError: no safetensors file, or one without a classifier.
    """
    shapes, prefixes = tensor_shapes(file), classifier_prefixes(model)
    named = sorted(name for name in model.state_dict() if name.startswith(prefixes) and name in shapes)
    # Behind a hidden layer or a norm, the classifier's last tensor is its output's bias.
    rows = [shapes[name][0] for name in named if name.endswith("weight") and len(shapes[name]) > 1]
    if not rows:
        raise BackboneError(
            f"weights: expected the classifier of timm's {model.pretrained_cfg['architecture']} in {str(file)!r} "
            f"({_some([f'{prefix}weight' for prefix in prefixes])}), got none; a backbone without classifier can join "
            "a space, but not be split"
        )
    return rows[-1]


def tensor_shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file by name.

    Raises:
        BackboneError: the file is missing, damaged, or of another kind.
    """
    path = Path(file)
    if path.suffix.lower() in PICKLES:
        raise BackboneError(
            f"weights: expected a safetensors file, got {str(path)!r}: a pickle may run code when it is read. Convert "
            "it once: safetensors.torch.save_file(timm.models.load_state_dict(FILE), 'model.safetensors')"
        )
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"weights: expected a safetensors file at {str(path)!r}, got {error}") from error


def classifier_prefixes(model: Any) -> tuple[str, ...]:
    """How the names of a timm model's classifier tensors begin, such as "fc."."""
    names = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _fill(model: Any, file: str | Path, shapes: Shapes, left_aside: Collection[str] = ()) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - shapes.keys())
    extra = sorted(shapes.keys() - expected.keys() - set(left_aside))
    other = sorted(name for name in expected.keys() & shapes.keys() if shapes[name] != tuple(expected[name].shape))
    if missing or extra or other:
        name = model.pretrained_cfg["architecture"]
        raise BackboneError(
            f"weights: expected the tensors of timm's {name} in {str(file)!r}; missing: {_some(missing)}; "
            f"not expected: {_some(extra)}; of another shape: {_some(other)}"
        )
    tensors = load_file(file)
    model.load_state_dict({name: tensors[name] for name in expected})


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
