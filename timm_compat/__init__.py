"""timm-compat: any timm backbone as a compatible feature extractor, which works with heads that were trained elsewhere.

What most programs need is here. ``tc.data`` holds data sets, ``tc.evaluation`` further scores, ``tc.experiments``
the runs that recipes describe, ``tc.gallery`` stored embeddings, ``tc.errors`` every error. Modules behind these are
private.
"""

import importlib
import warnings
from typing import Any

from timm_compat import data, errors, evaluation, gallery
from timm_compat._version import __version__
from timm_compat.config import TrainConfig
from timm_compat.evaluation.matrix import RecombinationMatrix, recombination_matrix
from timm_compat.evaluation.probe import linear_probe
from timm_compat.hub import push as _push  # noqa: F401  (lets components publish themselves)
from timm_compat.hub.loading import load, pull
from timm_compat.hub.search import Found, SearchResult, search
from timm_compat.joining.join import join
from timm_compat.joining.report import JoinReport
from timm_compat.joining.swap import swap
from timm_compat.methods.method import Asked, Method, Seen
from timm_compat.methods.registry import register_method
from timm_compat.methods.self_supervised import SelfSupervisedTask
from timm_compat.models import registry as _registry  # noqa: F401  (registers timm's entry points)
from timm_compat.models.composed import CompatModel, compose
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.heads import AuxiliaryHead, CommonClassesHead, TaskHead
from timm_compat.models.multi_head import MultiHeadModel
from timm_compat.models.passes import extract_features
from timm_compat.models.split import split
from timm_compat.space import CompatSpace
from timm_compat.storage.facts import Facts, Result
from timm_compat.training.callbacks import Callback
from timm_compat.training.fit import FitResult, fit
from timm_compat.training.members import Member, Reference

_LATER = ("experiments",)  # imported when asked for: recipes need more than the rest
# Names that stood here in version 0.1, and where they stand now.
_MOVED = {
    **dict.fromkeys((name for name in dir(errors) if name.endswith("Error")), "errors"),
    **dict.fromkeys(data.__all__, "data"),
    **dict.fromkeys(("MatrixOverSeeds", "RetrievalScores", "over_seeds", "retrieve"), "evaluation"),
}

__all__ = [
    "Asked",
    "AuxiliaryHead",
    "Callback",
    "CommonClassesHead",
    "CompatExtractor",
    "CompatModel",
    "CompatSpace",
    "Facts",
    "FitResult",
    "Found",
    "JoinReport",
    "Member",
    "Method",
    "MultiHeadModel",
    "RecombinationMatrix",
    "Reference",
    "Result",
    "SearchResult",
    "Seen",
    "SelfSupervisedTask",
    "TaskHead",
    "TrainConfig",
    "__version__",
    "compose",
    "create_extractor",
    "data",
    "errors",
    "evaluation",
    "experiments",
    "extract_features",
    "fit",
    "gallery",
    "join",
    "linear_probe",
    "load",
    "pull",
    "recombination_matrix",
    "register_method",
    "search",
    "split",
    "swap",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MOVED:
        home = _MOVED[name]
        warnings.warn(f"tc.{name} is called tc.{home}.{name} now", DeprecationWarning, stacklevel=2)
        return getattr(globals()[home], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
