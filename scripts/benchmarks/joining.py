"""Split, probe, join and swap against what nobody can do without: loading the networks, and their bare passes."""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

import timm_compat as tc
from benchmarks.clock import in_turns, timed
from benchmarks.networks import random_images
from benchmarks.passes import bare_loop
from timm_compat.methods.logistic import FOLDS, PENALTIES, fit_logistic
from timm_compat.models.batch_size import default_batch_size

TITLE = "Split, probe, join, swap"
TEXT = """Whole calls, from a name and a file of weights on, with 1,000 classes and images in memory; *ours, s* holds
all of it, *more, s* what the other side does without. Both load the same files, the other with `timm.create_model(name,
checkpoint_path=...)`. *split*: against loading and taking the classifier off; with images, and a bare pass over them.
*probe*: against a bare pass and scikit-learn's `LogisticRegressionCV` on standardised features, with as many penalties
and folds; *fit alone* is that without the pass, on random features in ten clusters. *join* (the network becomes an
extractor in the space of the one beside it, which is loaded): against loading it; with images, and a bare pass of both.
*swap* (the network under the classifier of the one beside it): against loading both; with images, and a bare pass of
both. A bare pass is timm's model alone, in batches, normalised (as in the table of passes). What the other side does
without does not grow with the images, but for one more pass of `swap`'s new network: checks that the parts give the
model's logits; without images, the mean of features from noise; with images, closed forms in double precision, one more
of them where heads agree little, as those of untrained networks do; and, in `swap`, counting and timing both networks
for its report."""
HEADER = ("what", "network", "beside", "images", "ratio", "ours, s", "more, s", "against")
SIZE, IMAGES, PROBED, FITTED = 224, 32, 64, (1000, 1280)
NETWORKS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "resnet18")
SMALL_SIZE, SMALL_FITTED, SMALL_NETWORKS = 64, (60, 16), ("test_efficientnet", "test_resnet", "test_resnet")
NUM_CLASSES = 1000
NAMES = [f"class {number}" for number in range(NUM_CLASSES)]
CLUSTERS = 10


def cells(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """One measurement for every call and network, without images and with them."""
    old, near, far = SMALL_NETWORKS if options.small else NETWORKS
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for count in (0, IMAGES):
        images = "-images" if count else ""
        for name in dict.fromkeys((old, far)):
            found[f"split-{name}{images}"] = lambda name=name, count=count: split(options, name, count)
        for name in dict.fromkeys((near, far)):
            found[f"join-{name}{images}"] = lambda name=name, count=count: join(options, old, name, count)
        found[f"swap-{far}{images}"] = lambda count=count: swap(options, old, far, count)
    found[f"probe-{old}"] = lambda: probe(options, old)
    return found | {"probe-fit": lambda: fit_alone(options)}


def split(options: argparse.Namespace, name: str, count: int) -> dict[str, Any]:
    """A classifier taken apart."""
    images, size = pixels(options, count)
    with files(name) as (file,):

        def ours() -> Any:
            return tc.split(name, weights=file, class_names=NAMES, images=images, img_size=size, **quiet(options))

        def theirs() -> Any:
            model = loaded(name, file, options)
            model.reset_classifier(0)
            return bare(model, images, options)

        return compared(options, ["split", name, "", count], ours, theirs, "loading" + passes_of(count, 1))


def join(options: argparse.Namespace, old: str, name: str, count: int) -> dict[str, Any]:
    """A network becomes an extractor of a space."""
    images, size = pixels(options, count)
    with files(old, name) as (old_file, file):
        reference, head = tc.split(old, weights=old_file, class_names=NAMES, img_size=size)
        evidence = {"reference": reference, "heads": [head]} if count else {}
        given = {"class_names": NAMES, "img_size": size, **evidence, **quiet(options)}
        alone = reference.backbone.model

        def ours() -> Any:
            return tc.join(reference.space, name, images, weights=file, **given)

        def theirs() -> Any:
            return [bare(model, images, options) for model in (loaded(name, file, options), alone)]

        return compared(options, ["join", name, old, count], ours, theirs, "loading" + passes_of(count, 2))


def swap(options: argparse.Namespace, old: str, name: str, count: int) -> dict[str, Any]:
    """Another backbone under a classifier."""
    images, size = pixels(options, count)
    with files(old, name) as (old_file, file):
        given = {"class_names": NAMES, "old_class_names": NAMES, "img_size": size, **quiet(options)}

        def ours() -> Any:
            return tc.swap(old, name, images, weights=file, old_weights=old_file, **given)

        def theirs() -> Any:
            return [bare(loaded(*one, options), images, options) for one in ((old, old_file), (name, file))]

        return compared(options, ["swap", name, old, count], ours, theirs, "loading both" + passes_of(count, 2))


def probe(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """A head from labelled images."""
    size = SMALL_SIZE if options.small else SIZE
    data = random_images(PROBED, size)
    with files(name) as (file,):
        extractor, _ = tc.split(name, weights=file, class_names=NAMES, img_size=size)
        model = extractor.backbone.model

        def ours() -> Any:
            return tc.linear_probe(extractor, data, **quiet(options))

        def theirs() -> Any:
            return cross_validated(torch.cat(bare(model, data.images, options)), data.labels)

        return compared(options, ["probe", name, "", PROBED], ours, theirs, "a pass and scikit-learn")


def fit_alone(options: argparse.Namespace) -> dict[str, Any]:
    """The probe's logistic regression on features in clusters."""
    count, width = SMALL_FITTED if options.small else FITTED
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLUSTERS
    features = torch.randn(count, width, generator=random) + torch.randn(CLUSTERS, width, generator=random)[labels] / 8
    row = ["fit alone", f"{width} features", "", count]
    return compared(
        options, row, lambda: fit_logistic(features, labels, CLUSTERS, generator=torch.Generator().manual_seed(0)),
        lambda: cross_validated(features, labels), "scikit-learn",
    )  # fmt: skip


def cross_validated(features: torch.Tensor, labels: torch.Tensor) -> Any:
    """scikit-learn's choice among as many penalties and folds."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    strengths = [1 / (len(features) * penalty) for penalty in PENALTIES]
    regression = LogisticRegressionCV(Cs=strengths, cv=FOLDS, max_iter=1000, scoring="neg_log_loss")
    return make_pipeline(StandardScaler(), regression).fit(features.numpy(), labels.numpy())


def compared(
    options: argparse.Namespace, row: list[Any], ours: Callable[[], Any], theirs: Callable[[], Any], against: str
) -> dict[str, Any]:
    """Both in turns."""
    runs = {"ours": timed(ours, options.device), "theirs": timed(theirs, options.device)}
    with warnings.catch_warnings():  # of heads that do not agree, as those of untrained networks do not
        warnings.simplefilter("ignore")
        return {"row": row, **in_turns(runs, options.repeats), "against": against}


@contextmanager
def files(*names: str) -> Iterator[list[Path]]:
    """Files of weights of new classifiers."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number, name in enumerate(names):
            found.append(Path(folder) / f"{number}.safetensors")
            save_file(timm.create_model(name, num_classes=NUM_CLASSES).state_dict(), found[-1])
        yield found


def loaded(name: str, file: Path, options: argparse.Namespace) -> nn.Module:
    """timm's model with these weights."""
    model = timm.create_model(name, num_classes=NUM_CLASSES, checkpoint_path=str(file))
    return model.eval().to(options.device)


def bare(model: nn.Module, images: torch.Tensor | None, options: argparse.Namespace) -> list[torch.Tensor]:
    """Outputs of a bare pass, batch by batch; none without images."""
    if images is None:
        return []
    config = timm.data.resolve_model_data_config(model)
    config["input_size"] = tuple(images.shape[1:])
    batch = default_batch_size([config], [model], torch.device(options.device))
    return bare_loop(model, config, images, batch, None)()


def pixels(options: argparse.Namespace, count: int) -> tuple[torch.Tensor | None, int]:
    """So many images, None if 0, and their size."""
    size = SMALL_SIZE if options.small else SIZE
    return (random_images(count, size).images if count else None), size


def quiet(options: argparse.Namespace) -> dict[str, Any]:
    """Keywords of a run."""
    return {"device": options.device, "progress": False}


def passes_of(count: int, networks: int) -> str:
    """What is compared with, in words."""
    return f" and {'one pass' if networks == 1 else 'a pass of both'}" if count else ""


def row(result: dict[str, Any]) -> list[Any]:
    """The cells of a result's row."""
    what, name, beside, count = result["row"]
    seconds = result["seconds"]
    more = seconds["ours"] - seconds["theirs"]
    return [
        what,
        name,
        beside or "-",
        count or "none",
        result["ratios"]["ours"],
        seconds["ours"],
        more,
        result["against"],
    ]
