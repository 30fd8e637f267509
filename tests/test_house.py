"""The house's own rules: imports go down the floors, packages hold no code of their own, public names are pinned."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import timm_compat as tc

PACKAGE = Path(__file__).resolve().parents[1] / "timm_compat"
ROOT = "timm_compat"


def within(package: str, *names: str) -> tuple[str, ...]:
    """Modules of one package."""
    return tuple(f"{package}.{name}" for name in names)


# Lowest floor first. A module may import only from lower floors. "name.*" stands for every module of that
# package which has no line of its own; a package that is named itself may hold code in its __init__.py.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_version", "_lazy", "table", "errors"),
    ("vocabulary",),
    (
        *("_extras", "imagenet", "processes", "seeding"),
        *("storage.files", "storage.facts", "storage.hub_calls", "storage.card_merge", "storage.source"),
    ),
    ("storage.cards", "storage.reading"),
    ("storage.component", "storage.base"),
    ("config",),
    ("methods.*",),
    ("methods.common_classes", "methods.self_supervised", "methods.initial_weights"),
    ("methods.simplex",),
    ("methods.registry",),
    ("space", "recipes.nodes"),
    ("recipes.values",),
    ("recipes.schema", "recipes.trials"),
    ("recipes.reader", "recipes.reference", "recipes.writer"),
    ("data.labelled", "data.order", "data.listing"),
    ("data.image_dataset",),
    ("data.framing",),
    ("data.augmentation",),
    ("data.transforms",),
    ("data.decoding", "models.evaluating", "models.interface", "models.unwrapping", "models.budget"),
    ("models.thin",),
    ("models.backbone", "models.blank", "models.preprocess", "data.arrays"),
    ("models.run_options",),
    ("data.map_style", "models.rebuilding"),
    ("data.torchvision_sets",),
    ("models.backbone_build",),
    ("models.backbone_config", "models.weights", "models.batch_size"),
    ("models.extractor", "models.heads", "data.*"),
    ("data.sources",),
    ("models.passes", "models.fusion", "models.multi_head"),
    ("models.composed", "models.batch_statistics", "models.classifier"),
    ("models.registry", "models.typical"),
    ("models.split", "models.cost", "models.export"),
    ("evaluation.scores", "evaluation.predictions", "evaluation.intervals", "evaluation.retrieval"),
    ("evaluation.plots", "evaluation.cells", "joining.closed_form"),
    ("joining.evidence", "joining.report"),
    ("joining.join",),
    ("joining.swap",),
    ("evaluation.answers", "evaluation.document", "evaluation.post_hoc", "evaluation.probe", "evaluation.feature_plot"),
    ("evaluation.matrix",),
    ("evaluation.seeds", "evaluation.columns"),
    ("evaluation.baselines",),
    ("gallery.manifest", "gallery.ids"),
    ("gallery.stored",),
    ("gallery.embedding",),
    ("gallery.nearest",),
    ("gallery.searching",),
    ("gallery.building", "gallery.ways"),
    ("gallery.sampling", "gallery.records", "gallery.advice"),
    ("gallery.planning",),
    ("gallery.upgrading",),
    ("hub.fused", "hub.repository"),
    ("hub.loading", "hub.push", "hub.listing"),
    ("hub.question",),
    ("hub.search",),
    ("evaluation.report", "evaluation.report_pictures"),
    ("evaluation.report_text",),
    (
        *("training.members", "training.views", "training.old_head", "training.history"),
        *("training.accelerators", "training.callbacks"),
    ),
    ("training.terms", "training.checkpoint", "training.feature_cache"),
    ("training.joint",),
    ("training.optimization", "training.streams"),
    ("training.loop",),
    ("training.fit",),
    ("experiments.parts", "experiments.networks", "experiments.result", "experiments.frozen"),
    ("experiments.build", "experiments.engine"),
    (
        *within("experiments.adapt", "recipe"),
        *within("experiments.finetune", "recipe", "cost"),
        *within("experiments.transfer", "recipe"),
    ),
    (
        *within("experiments.adapt", "domains", "selection"),
        *within("experiments.finetune", "learning"),
        *within("experiments.transfer", "networks", "tables"),
    ),
    (
        *within("experiments.adapt", "modes"),
        *within("experiments.finetune", "sources"),
        *within("experiments.transfer", "exchange", "upgrade"),
    ),
    within("experiments.finetune", "sections"),
    within("experiments.finetune", "tables"),
    ("experiments.demo", "experiments.pretrained_weights"),
    (
        "experiments.*",
        *within("experiments.adapt", "run"),
        *within("experiments.finetune", "run"),
        *within("experiments.transfer", "run"),
    ),
    ("experiments",),
    ("cli.options",),
    ("cli.*",),
    ("cli.main",),
    ("cli",),
    ("data", "evaluation", "gallery"),
    ("__init__", "__main__"),
)

PUBLIC_NAMES = [
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
PUBLIC_PACKAGES = {
    "gallery": [
        *("BuildReport", "Gallery", "GallerySearch", "Hit", "Record", "UpgradePlan", "UpgradeReport", "WayScores"),
        *("build", "from_qdrant", "load", "plan", "read_records", "to_qdrant", "upgrade"),
    ],
    "data": ["ArrayDataset", "ImageDataset", "load_dataset", "load_digits"],
    "experiments": [
        *("AdaptRecipe", "AdaptResult", "ClassifierTransferRecipe", "ClassifierTransferResult", "ExperimentResult"),
        *("FinetuneRecipe", "FinetuneResult", "Recipe", "RecipeResult", "read_recipe", "run_adaptation"),
        *("run_classifier_transfer", "run_finetune", "run_recipe"),
    ],
    "evaluation": ["MatrixOverSeeds", "RetrievalScores", "negative_flip_rate", "over_seeds", "retrieve"],
}


def read_package() -> tuple[dict[str, Path], dict[str, Path]]:
    """Modules and bare packages of timm_compat by their names in the table ("models.heads", "models")."""
    modules, packages = {}, {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        package = name.removesuffix(".__init__")
        if package != name and not is_named(package):
            packages[package] = path
        else:
            modules[package] = path
    return modules, packages


def is_named(name: str) -> bool:
    return any(name in names for names in FLOORS)


MODULES, PACKAGES = read_package()


def floor_of(module: str) -> int | None:
    """The floor of one module: its own line first, else its package's "name.*"."""
    for name in (module, f"{module.rpartition('.')[0]}.*"):
        for floor, names in enumerate(FLOORS):
            if name in names:
                return floor
    return None


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names below the root that are imported anywhere, also inside functions; "" is the root itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (below_root(alias.name) for alias in node.names if is_under_root(alias.name))
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            if node.level:
                yield source
            elif is_under_root(source):
                for alias in node.names:
                    submodule = below_root(f"{source}.{alias.name}")
                    yield submodule if is_ours(submodule) else below_root(source)


def is_under_root(name: str) -> bool:
    return name.partition(".")[0] == ROOT


def below_root(name: str) -> str:
    return name.partition(".")[2]


def is_ours(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor(module: str) -> None:
    assert floor_of(module) is not None, f"give {module} a floor in FLOORS"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    floor = floor_of(module)
    assert floor is not None
    for name in imported_names(tree):
        assert name, f"{module} imports the package root"
        assert name in MODULES, f"{module} imports {name}, which is no module: name the defining file in full"
        assert (floor_of(name) or 0) < floor, f"{module} imports {name}, which is not on a lower floor"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_hold_a_docstring_at_most(package: str) -> None:
    body = ast.parse(PACKAGES[package].read_text(encoding="utf-8")).body
    assert len(body) == (ast.get_docstring(ast.Module(body, [])) is not None)


def test_the_table_names_nothing_that_is_gone() -> None:
    named = {name for names in FLOORS for name in names if not name.endswith(".*")}
    assert named <= MODULES.keys()


def test_public_names_are_pinned() -> None:
    assert tc.__all__ == PUBLIC_NAMES
    assert sorted(PUBLIC_NAMES) == PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert getattr(tc, name) is not None


@pytest.mark.parametrize("package", PUBLIC_PACKAGES)
def test_public_names_of_packages_are_pinned(package: str) -> None:
    public = getattr(tc, package)
    assert public.__all__ == dir(public) == PUBLIC_PACKAGES[package]
    for name in public.__all__:
        assert getattr(public, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        public.nothing  # noqa: B018


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_tests_take_public_names_from_where_they_are_public(path: Path) -> None:
    homes = {ROOT, f"{ROOT}.errors", *(f"{ROOT}.{package}" for package in PUBLIC_PACKAGES)}
    given = [
        getattr(importlib.import_module(home), name) for home in homes for name in dir(importlib.import_module(home))
    ]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and is_under_root(node.module or "") and node.module not in homes:
            taken = {alias.name: getattr(importlib.import_module(str(node.module)), alias.name) for alias in node.names}
            public = [name for name, one in taken.items() if callable(one) and any(one is other for other in given)]
            assert not public, f"take {public} from where it is public, not from {node.module}"


def test_the_script_that_measures_the_house_finds_the_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE.parent / "scripts"))
    found = [node.name for node in importlib.import_module("measure_house").PublicNames(PACKAGE).definitions()]
    own = [name for name in PUBLIC_NAMES if callable(getattr(tc, name))]
    errors = [name for name in dir(tc.errors) if name.endswith("Error")]
    assert sorted(found) == sorted([*own, *errors, *(name for names in PUBLIC_PACKAGES.values() for name in names)])


@pytest.mark.parametrize("name", ["ConfigError", "load_digits", "retrieve"])
def test_names_of_the_first_version_say_where_they_went(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"tc\.{name} is called tc\.(errors|data|evaluation)\.{name} now"):
        found = getattr(tc, name)
    assert found.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tc.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import timm_compat", [""]),
        ("import timm_compat.errors as e", ["errors"]),
        ("from timm_compat.errors import ConfigError", ["errors"]),
        ("from timm_compat import errors", ["errors"]),
        ("from timm_compat import TaskHead", [""]),
        ("from timm_compat.models import backbone", ["models.backbone"]),
        ("from ..errors import ConfigError", ["..errors"]),
        ("def f():\n    from timm_compat.space import CompatSpace", ["space"]),
        ("import timm\nfrom torch import nn", []),
    ],
)
def test_the_reader_of_imports(source: str, expected: list[str]) -> None:
    assert list(imported_names(ast.parse(source))) == expected
