"""timm-compat: any timm backbone as a compatible feature extractor; extractors and heads join without fine-tuning."""

from timm_compat import gallery as gallery
from timm_compat._version import __version__
from timm_compat.config import TrainConfig
from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.digits import load_digits
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.sources import load_dataset
from timm_compat.errors import (
    BackboneError,
    CompatError,
    ComponentFileError,
    ConfigError,
    DataError,
    DraftSpaceError,
    ExportError,
    FuseError,
    HubAccessError,
    HubConnectionError,
    HubError,
    HubNotFoundError,
    HubTimeoutError,
    ImageError,
    MissingExtraError,
    OutputExistsError,
    OutputWriteError,
    SpaceMismatchError,
    TrainingError,
)
from timm_compat.evaluation.matrix import RecombinationMatrix, recombination_matrix
from timm_compat.evaluation.probe import linear_probe
from timm_compat.evaluation.retrieval import RetrievalScores, retrieve
from timm_compat.evaluation.seeds import MatrixOverSeeds, over_seeds
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
from timm_compat.training.fit import FitResult, fit
from timm_compat.training.members import Member, Reference

__all__ = [
    "ArrayDataset",
    "Asked",
    "AuxiliaryHead",
    "BackboneError",
    "CommonClassesHead",
    "CompatError",
    "CompatExtractor",
    "CompatModel",
    "CompatSpace",
    "ComponentFileError",
    "ConfigError",
    "DataError",
    "DraftSpaceError",
    "ExportError",
    "Facts",
    "FitResult",
    "Found",
    "FuseError",
    "HubAccessError",
    "HubConnectionError",
    "HubError",
    "HubNotFoundError",
    "HubTimeoutError",
    "ImageDataset",
    "ImageError",
    "JoinReport",
    "MatrixOverSeeds",
    "Member",
    "Method",
    "MissingExtraError",
    "MultiHeadModel",
    "OutputExistsError",
    "OutputWriteError",
    "RecombinationMatrix",
    "Reference",
    "Result",
    "RetrievalScores",
    "SearchResult",
    "Seen",
    "SelfSupervisedTask",
    "SpaceMismatchError",
    "TaskHead",
    "TrainConfig",
    "TrainingError",
    "__version__",
    "compose",
    "create_extractor",
    "extract_features",
    "fit",
    "gallery",
    "join",
    "linear_probe",
    "load",
    "load_dataset",
    "load_digits",
    "over_seeds",
    "pull",
    "recombination_matrix",
    "register_method",
    "retrieve",
    "search",
    "split",
    "swap",
]
