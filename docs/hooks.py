"""MkDocs hooks: files of the repository that pages link to become part of the site, under their own paths.

Links are written as they hold in a checkout, ``../../scripts/results/study.md``. The site has the same file at
``scripts/results/study.md``, so links that leave ``docs/pages``, or come from outside, are turned to point there. The
pages of recipes' keys are made from the models that read recipes.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from timm_compat.cli.recipes import RECIPES, kind_of
from timm_compat.recipes.reference import json_schema, markdown

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "pages"
SHARED = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs/tutorials/*.py", "scripts/recipes/*.yaml")
RESULTS = tuple(f"scripts/results/*.{ending}" for ending in ("md", "json", "png"))
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside their folder."""
    for pattern in SHARED + RESULTS:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for command in RECIPES:
        title = f"# Keys of a recipe for `timm-compat {command}`\n\n"
        content = title + markdown(json_schema(kind_of(command)))
        files.append(File.generated(config, f"keys/{command}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of one page from places in a checkout to places on the site."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    here, at = Path(source).parent, os.path.dirname(page.file.src_uri)

    def on_site(link: re.Match[str]) -> str:
        target = (here / link[2]).resolve()
        below = PAGES if target.is_relative_to(PAGES) else ROOT
        if not target.exists() or not target.is_relative_to(ROOT):
            return link[0]  # MkDocs warns
        uri = "index.md" if target == ROOT / "README.md" else target.relative_to(below).as_posix()
        return link[1] + os.path.relpath(uri, at or ".")

    return LINK.sub(on_site, markdown)
