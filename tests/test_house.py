"""The house's own rules: imports go down the floors, packages hold no code of their own, public names are pinned."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "timm_compat"
ROOT = "timm_compat"

# Lowest floor first. A module may import only from lower floors. "name.*" stands for every module of that
# package which has no line of its own.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors"),
    ("_extras", "seeding", "files", "cards"),
    ("config", "space"),
    ("models.backbone", "models.interface", "models.preprocess", "data.arrays"),
    ("models.backbone_config",),
    ("models.extractor", "models.heads", "methods.*", "data.*"),
    ("models.features", "models.composed"),
    ("models.registry",),
    ("evaluation.scores",),
    ("evaluation.plots",),
    ("evaluation.matrix",),
    ("training.joint",),
    ("training.fit", "training.join"),
    ("applications.*",),
    ("cli.*",),
    ("__init__", "__main__"),
)

PUBLIC_NAMES = [
    "ArrayDataset",
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
    "FitResult",
    "FuseError",
    "ImageError",
    "JoinReport",
    "Member",
    "MissingExtraError",
    "OutputExistsError",
    "RecombinationMatrix",
    "RotationHead",
    "SimplexHead",
    "SpaceMismatchError",
    "TaskHead",
    "TrainConfig",
    "TrainingError",
    "__version__",
    "compose",
    "create_extractor",
    "extract_features",
    "fit",
    "join",
    "load_digits",
    "recombination_matrix",
]


def module_files() -> dict[str, Path]:
    """Every module by its name in the table ("models.heads"). Of the packages only the root counts as a module."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name == "__init__" or path.name != "__init__.py":
            files[name] = path
    return files


def package_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


FILES = module_files()


def floor_of(module: str) -> int | None:
    """The floor of one module: its own line first, else its package's "name.*"."""
    for name in (module, f"{module.rpartition('.')[0]}.*"):
        for floor, names in enumerate(FLOORS):
            if name in names:
                return floor
    return None


def imported_names(tree: ast.AST, module: str) -> Iterator[str]:
    """Dotted names below the root that ``module`` imports anywhere, also inside functions; "" is the root itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == ROOT:
                    yield alias.name.removeprefix(ROOT).removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, module)
            if source.split(".")[0] == ROOT:
                below = source.removeprefix(ROOT).removeprefix(".")
                for alias in node.names:
                    submodule = f"{below}.{alias.name}".removeprefix(".")
                    yield submodule if is_ours(submodule) else below


def absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    package = [ROOT, *module.split(".")][: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


def is_ours(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


@pytest.mark.parametrize("module", FILES)
def test_every_module_has_a_floor(module: str) -> None:
    assert floor_of(module) is not None, f"give {module} a floor in FLOORS"


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    floor = floor_of(module)
    assert floor is not None
    for name in imported_names(tree, module):
        assert name, f"{module} imports the package root"
        assert name in FILES, f"{module} imports {name}, which is no module: import from the file that defines it"
        assert (floor_of(name) or 0) < floor, f"{module} imports {name}, which is not on a lower floor"


@pytest.mark.parametrize("path", package_files(), ids=lambda path: path.parent.name)
def test_packages_hold_a_docstring_at_most(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert len(body) == (ast.get_docstring(ast.Module(body, [])) is not None)


def test_the_table_names_nothing_that_is_gone() -> None:
    named = {name for names in FLOORS for name in names if not name.endswith(".*")}
    assert named <= FILES.keys()


def test_public_names_are_pinned() -> None:
    import timm_compat

    assert timm_compat.__all__ == PUBLIC_NAMES
    assert sorted(PUBLIC_NAMES) == PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert getattr(timm_compat, name) is not None


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("import timm_compat", "space", [""]),
        ("import timm_compat.errors", "space", ["errors"]),
        ("from timm_compat.errors import ConfigError", "space", ["errors"]),
        ("from timm_compat import errors", "space", ["errors"]),
        ("from timm_compat import TaskHead", "space", [""]),
        ("from ..errors import ConfigError", "models.heads", ["errors"]),
        ("from . import backbone", "models.heads", ["models.backbone"]),
        ("def f():\n    from timm_compat.space import CompatSpace", "files", ["space"]),
        ("import timm\nfrom torch import nn", "space", []),
    ],
)
def test_the_reader_of_imports(source: str, module: str, expected: list[str]) -> None:
    assert list(imported_names(ast.parse(source), module)) == expected
