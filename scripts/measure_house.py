"""How the code is built, in numbers: ``scripts/measure_house.py [PACKAGE_FOLDER ...]`` prints one column a package.

Sizes of files and functions (without docstrings), own modules that a file imports, comments, docstrings and examples of
public names. Any package's folder can stand beside ours.
"""

import argparse
import ast
import io
import statistics
import tokenize
from collections.abc import Iterable, Sequence
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


def public(tree: ast.Module) -> Iterable[Documented]:
    """Public classes and functions of a module, and public methods of such classes."""
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (one for one in node.body if isinstance(one, Function) and not one.name.startswith("_"))


def measure(folder: Path) -> dict[str, str]:
    """The figures of one package, by what they are called."""
    sources = [file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))]
    trees = [ast.parse(source) for source in sources]
    sizes = [source.count("\n") for source in sources if source.strip()]
    functions = [lines_of(node) for tree in trees for node in ast.walk(tree) if isinstance(node, Function)]
    documented = [ast.get_docstring(node) or "" for tree in trees for node in public(tree)]
    imported = [own_imports(tree, folder.name) for tree in trees]
    code = sum(bool(line.strip()) for source in sources for line in source.splitlines())
    return {
        "files, lines": f"{len(sizes)}, {sum(sizes):,}",
        "lines a file: median, largest": f"{statistics.median(sizes):.0f}, {max(sizes):,}",
        f"files under {SMALL_FILE} lines": f"{share(size < SMALL_FILE for size in sizes):.0%}",
        "own modules that a file imports, 90th percentile": f"{tenth(imported):.0f}",
        "lines a function: median, 90th percentile": f"{statistics.median(functions):.0f}, {tenth(functions):.0f}",
        "comment lines to code": f"{sum(map(comments, sources)) / code:.1%}",
        "public names with a docstring": f"{share(bool(text) for text in documented):.0%}",
        "public names with an example": f"{share('>>>' in text for text in documented):.0%}",
    }


def share(answers: Iterable[bool]) -> float:
    """Of those that are true."""
    return statistics.fmean(answers)


def tenth(values: Sequence[int]) -> float:
    """The 90th percentile."""
    return statistics.quantiles(values, n=10)[-1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("folders", nargs="*", type=Path, default=[OURS], metavar="FOLDER", help="of a package")
    folders = [folder.resolve() for folder in parser.parse_args().folders]
    for folder in folders:
        if not any(folder.rglob("*.py")):
            parser.error(f"expected a package's folder, got {str(folder)!r}, which holds no Python file")
    found = {folder.name: measure(folder) for folder in folders}
    print(f"| | {' | '.join(found)} |", "| --- |" + " --- |" * len(found), sep="\n")
    for name in next(iter(found.values())):
        print(f"| {name} | {' | '.join(figures[name] for figures in found.values())} |")


if __name__ == "__main__":
    main()
