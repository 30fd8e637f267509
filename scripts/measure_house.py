"""How the code is built, in numbers: ``scripts/measure_house.py [PACKAGE_FOLDER ...]`` prints one column a package.

Sizes of files and functions (without docstrings), own modules that a file imports, comments, docstrings and examples of
public names. Any package's folder can stand beside ours.
"""

import argparse
import ast
import io
import statistics
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

OURS = Path(__file__).resolve().parents[1] / "timm_compat"
SMALL_FILE = 60  # lines
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef


def lines_of(function: Function) -> int:
    """Lines of a function without its docstring."""
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    return length - ((first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0)


def own_imports(tree: ast.Module, package: str) -> int:
    """How many modules of its own package a file imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == package):
            found.add(f"{'.' * node.level}{node.module}")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == package}
    return len(found)


def comments(source: str) -> int:
    """Lines that hold a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


class PublicNames:
    """What a package gives away, read from its files: it need not be installed.

    The names in ``__all__`` of its ``__init__.py``, or what that file imports of its own where no list is written out;
    behind a name that is a module, the same of that module. A package whose root gives nothing counts with all below.

    Args:
        folder: of the package.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder.name
        self.trees: dict[str, ast.Module] = {}
        self.packages: list[str] = []
        for file in sorted(folder.rglob("*.py")):
            module = ".".join([folder.name, *file.relative_to(folder).with_suffix("").parts])
            if file.name == "__init__.py":
                module = module.rpartition(".")[0]
                self.packages.append(module)
            self.trees[module] = ast.parse(file.read_text(encoding="utf-8"))

    def definitions(self) -> list[Documented]:
        """Classes and functions behind the names; constants have no docstring."""
        everywhere = (node for package in self.packages for node in self._of_module(package))
        found = self._of_module(self.root) or everywhere
        return list({id(node): node for node in found}.values())

    def _of_module(self, module: str) -> list[Documented]:
        tree = self.trees[module]
        names = _listed(tree)
        if names is None and module in self.packages:
            names = self._reexported(module)
        if names is None:
            names = [node.name for node in tree.body if isinstance(node, Documented) and not node.name.startswith("_")]
        return [node for name in names for node in self._behind(module, name)]

    def _behind(self, module: str, name: str) -> list[Documented]:
        """The definition of a name that a module has, which may come from another."""
        for node in reversed(self.trees[module].body):  # the last: overloads stand before it
            if isinstance(node, Documented) and node.name == name:
                return [node]
        for source, alias in self._imports(module):
            if (alias.asname or alias.name) in (name, "*") and source != module:
                found = self._behind(source, name if alias.name == "*" else alias.name)
                if found:
                    return found
        below = f"{module}.{name}"
        return self._of_module(below) if below in self.trees else []

    def _reexported(self, module: str) -> list[str]:
        """Names that are imported as themselves (PEP 484), else all of the package's own that are imported."""
        found = [alias for _, alias in self._imports(module)]
        return [one.name for one in found if one.asname == one.name] or [one.asname or one.name for one in found]

    def _imports(self, module: str) -> Iterator[tuple[str, ast.alias]]:
        """Every import from one of the package's own modules."""
        here = module.split(".") if module in self.packages else module.split(".")[:-1]
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.ImportFrom):
                above = here[: len(here) - node.level + 1] if node.level else []
                source = ".".join([*above, *filter(None, [node.module])])
                yield from ((source, alias) for alias in node.names if source in self.trees)


def _listed(tree: ast.Module) -> list[str] | None:
    """``__all__``, where it is written out."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets):
            try:
                return [str(name) for name in ast.literal_eval(node.value)]
            except ValueError:
                return None
    return None


def measure(folder: Path) -> dict[str, str]:
    """The figures of one package, by what they are called."""
    sources = [file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))]
    trees = [ast.parse(source) for source in sources]
    sizes = [source.count("\n") for source in sources if source.strip()]
    functions = [lines_of(node) for tree in trees for node in ast.walk(tree) if isinstance(node, Function)]
    documented = [ast.get_docstring(node) or "" for node in PublicNames(folder).definitions()]
    imported = [own_imports(tree, folder.name) for tree in trees]
    code = sum(bool(line.strip()) for source in sources for line in source.splitlines())
    return {
        "files, lines": f"{len(sizes)}, {sum(sizes):,}",
        "lines a file: median, largest": f"{statistics.median(sizes):.0f}, {max(sizes):,}",
        f"files under {SMALL_FILE} lines": f"{share(size < SMALL_FILE for size in sizes):.0%}",
        "own modules that a file imports, 90th percentile": f"{tenth(imported):.0f}",
        "lines a function: median, 90th percentile": f"{statistics.median(functions):.0f}, {tenth(functions):.0f}",
        "comment lines to code": f"{sum(map(comments, sources)) / code:.1%}",
        "public classes and functions": f"{len(documented)}",
        "of these with a docstring": f"{share(bool(text) for text in documented):.0%}",
        "with an example": f"{share('>>>' in text for text in documented):.0%}",
    }


def share(answers: Iterable[bool]) -> float:
    """Of those that are true; 0 of none."""
    return statistics.fmean([*answers] or [False])


def tenth(values: Sequence[int]) -> float:
    """The 90th percentile."""
    return statistics.quantiles(values, n=10)[-1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("folders", nargs="*", type=Path, default=[OURS], metavar="FOLDER", help="of a package")
    folders = [folder.resolve() for folder in parser.parse_args().folders]
    for folder in folders:
        if not (folder / "__init__.py").is_file():
            parser.error(f"expected a package's folder, got {str(folder)!r}, which holds no __init__.py")
    found = {folder.name: measure(folder) for folder in folders}
    print(f"| | {' | '.join(found)} |", "| --- |" + " --- |" * len(found), sep="\n")
    for name in next(iter(found.values())):
        print(f"| {name} | {' | '.join(figures[name] for figures in found.values())} |")


if __name__ == "__main__":
    main()
