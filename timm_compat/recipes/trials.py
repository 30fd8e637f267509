"""What the recipes of all experiments have in common: how networks are trained, seeds, and the output folder."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, field

from timm_compat.config import TrainConfig
from timm_compat.recipes.values import Folder, Training, recipe

DECIDED = ("seed", "output_dir", "best_metric", "log_with")


@recipe
class TrialsRecipe:
    """Everything is trained and measured once for every seed.

    Attributes:
        training: of every network; seed and folder are those of the trial.
        seeds: each once, at least one.
        output_dir: folder of results, components and checkpoints; nothing is kept if None.

    Raises:
        ConfigError: no seed, one twice, or a setting of ``training`` that the trials decide.
    """

    _: KW_ONLY
    training: Training = field(default_factory=TrainConfig)
    seeds: tuple[int, ...] = (0,)
    output_dir: Folder | None = None

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield f"seeds: expected at least one, each once, got {list(self.seeds)}"
        yield from decided("training", self.training)


def decided(key: str, training: TrainConfig) -> Iterator[str]:
    """A mistake for each setting of a training that the trials decide."""
    default = TrainConfig()
    for name in DECIDED:
        if getattr(training, name) != getattr(default, name):
            yield f"{key}.{name}: the trials decide it; drop it, and use seeds and output_dir"
