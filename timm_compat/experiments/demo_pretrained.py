"""The demonstration with pretrained networks: one's head for digits runs on the other, and no network is trained."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timm_compat.data.array_files import load_digits
from timm_compat.evaluation.baselines import retrained_head_accuracy
from timm_compat.evaluation.intervals import wilson_interval
from timm_compat.evaluation.matrix import RecombinationMatrix, recombination_matrix
from timm_compat.evaluation.plots import bars
from timm_compat.evaluation.probe import linear_probe
from timm_compat.experiments.demo import check_backbones, save_figures
from timm_compat.joining.join import join
from timm_compat.joining.report import Agreement, JoinReport
from timm_compat.models.extractor import CompatExtractor, origin_facts
from timm_compat.models.heads import TaskHead
from timm_compat.models.split import split
from timm_compat.seeding import generator
from timm_compat.storage.files import new_folder

IN_CHANS = 1
RETRAINED = "head retrained with labels"
WAYS = ("as it is", "joined through its classes", "with unlabelled digits too")


@dataclass(frozen=True)
class PretrainedDemoConfig:
    """Settings of the demonstration with pretrained networks.

    Attributes:
        backbones: two names of timm models with classifiers over ImageNet's classes.
        seed: of which digits are labelled, and of the cross-validation's folds.
        img_size: side to which the 8 x 8 digits are enlarged.

    Raises:
        BackboneError: a name that timm does not know.
        ConfigError: not two backbones, or a number out of range.
    """

    backbones: tuple[str, ...] = ("tf_efficientnet_lite1", "tf_efficientnet_lite0")
    seed: int = 0
    img_size: int = 64

    def __post_init__(self) -> None:
        check_backbones(self.backbones, self.img_size)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of ``split`` and ``join``, and of ``fetch_pretrained`` for the weights that they read."""
        return {"in_chans": IN_CHANS, "img_size": (self.img_size, self.img_size)}


@dataclass(frozen=True)
class PretrainedDemoResult:
    """What the demonstration measured; accuracies in [0, 1] on 449 test digits.

    Attributes:
        matrix: the first network, and the second one in ``WAYS``, under the first one's head.
        ceiling: accuracy of a head retrained with labels on the second network.
        report: of the join with images.
        num_labelled: digits that the head learned from.
        seconds: wall time, without fetching the weights.
        reference: the first network's extractor.
        joined: the second one's, joined with images.
        head: over the digits.
    """

    matrix: RecombinationMatrix
    ceiling: float
    report: JoinReport
    num_labelled: int
    seconds: float
    reference: CompatExtractor = field(repr=False)
    joined: CompatExtractor = field(repr=False)
    head: TaskHead = field(repr=False)

    @property
    def expected(self) -> Agreement:
        """How often the join with images said that the head answers alike on both networks."""
        return list(self.report.agreements.values())[-1]  # after that of the classes in common

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values; None where the head cannot run on the second network as it is."""
        native, independent, by_classes, by_both = map(float, self.matrix.accuracy[:, 0])
        return {
            "native": native,
            "independent": None if math.isnan(independent) else independent,
            "joined_classes": by_classes,
            "joined": by_both,
            "ceiling": self.ceiling,
            "chance": float(self.matrix.chance.mean()),
            "seconds": self.seconds,
        }

    def matrices(self) -> dict[str, Any]:
        """The matrix as JSON values."""
        return {"pretrained": self.matrix.to_dict()}

    def save(self, folder: str | Path) -> Path:
        """Write matrix, components and, where Matplotlib is installed, a picture to a new folder, in one step.

        Raises:
            OutputExistsError: the folder holds something already.
        """
        with new_folder(folder) as partial:
            save_figures(partial, self._figure, self.matrices())
            self.reference.space.save_pretrained(partial / "space")
            self.reference.save_pretrained(partial / "extractor-a")
            self.joined.save_pretrained(partial / "extractor-b")
            self.head.save_pretrained(partial / "head-digits")
        return Path(folder)

    def _figure(self) -> Any:
        heights = {way: float(self.matrix.accuracy[row, 0]) for row, way in enumerate(WAYS, start=1)}
        heights[RETRAINED] = self.ceiling
        count = self.matrix.counts[0]
        figure, _ = bars(
            heights,
            intervals={way: wilson_interval(height, count) for way, height in heights.items()},
            chance=float(self.matrix.chance[0]),
            native=float(self.matrix.accuracy[0, 0]),
            ylabel="accuracy",
            title=f"{self.joined.architecture} under {self.reference.architecture}'s head",
        )
        return figure


def run_pretrained_demo(
    config: PretrainedDemoConfig, weights: Sequence[Path], say: Callable[[str], None]
) -> PretrainedDemoResult:
    """Split, probe, join and measure; ``say`` gets one line a stage.

    Args:
        config: settings.
        weights: of both backbones, as ``fetch_pretrained`` writes them with ``config.arguments``.
        say: gets the lines.

    Raises:
        BackboneError: a network without a classifier that can be split, or one that cannot take such small images.
        ConfigError: networks without classes in common.
    """
    start = time.perf_counter()
    train, test = load_digits("train"), load_digits("test")
    labelled, unlabelled = train.halves(generator(config.seed, "halves"))
    (first, second), (first_file, second_file) = config.backbones, weights
    arguments = config.arguments

    say(f"1/3  splitting {first}, and fitting a head on its extractor to {len(labelled)} labelled digits")
    reference = _with_origin(split(first, weights=first_file, **arguments)[0])
    head = linear_probe(reference, labelled, seed=config.seed)

    say(f"2/3  joining {second} to its space: through its classes alone, and with {len(unlabelled)} unlabelled digits")
    by_classes = join(reference.space, second, weights=second_file, **arguments)
    both: dict[str, Any] = {"reference": reference, "heads": [head], "weights": second_file, **arguments}
    joined = _with_origin(join(reference.space, second, unlabelled.images, **both))

    say("3/3  measuring the head on both networks, and one that is retrained with labels")
    alone, _ = split(second, weights=second_file, **arguments)
    extractors = dict(zip((f"{second}, {way}" for way in WAYS), (alone, by_classes, joined), strict=True))
    matrix = recombination_matrix({first: reference, **extractors}, {first: head}, test, cross_space=True)
    return PretrainedDemoResult(
        matrix=matrix,
        ceiling=retrained_head_accuracy(alone, labelled, test),
        report=joined.fit_report,
        num_labelled=len(labelled),
        seconds=time.perf_counter() - start,
        reference=reference,
        joined=joined,
        head=head,
    )


def _with_origin(extractor: CompatExtractor) -> CompatExtractor:
    # Built from a file, an extractor does not know that the file holds what the Hub gave.
    origin = origin_facts(extractor.backbone.model.pretrained_cfg.get("hf_hub_id"))
    extractor.facts = replace(origin, training=extractor.facts.training)
    return extractor
