"""What the recipes of all applications have in common: how networks are trained, from which seeds, and where to."""

from dataclasses import dataclass, field
from pathlib import PurePath

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError
from timm_compat.recipes.checks import check_text, check_whole
from timm_compat.recipes.schema import as_written

DECIDED = ("seed", "output_dir", "best_metric", "log_with")


@dataclass(frozen=True, kw_only=True)
class TrialsRecipe:
    """Everything is trained and measured once for every seed.

    Attributes:
        training: of every network; seed and folder are those of the trial.
        seeds: each once, at least one.
        output_dir: folder of results, components and checkpoints; nothing is kept if None.

    Raises:
        ConfigError: no seed, one twice, or a setting of ``training`` that the trials decide.
    """

    training: TrainConfig = field(default_factory=TrainConfig)
    seeds: tuple[int, ...] = (0,)
    output_dir: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "training", as_written(self.training))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if isinstance(self.output_dir, PurePath):
            object.__setattr__(self, "output_dir", str(self.output_dir))
        check_text("output_dir", self.output_dir, optional=True)
        for seed in self.seeds:
            check_whole("seeds", seed)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds: expected at least one, each once, got {list(self.seeds)}")
        default = TrainConfig()
        for name in DECIDED:
            if getattr(self.training, name) != getattr(default, name):
                raise ConfigError(f"training.{name}: the trials decide it; drop it, and use seeds and output_dir")
