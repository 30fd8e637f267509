"""Model cards: the templates of ``hub_cards/``, filled with a component's facts and nothing else; no network is needed.

Everything that a card says lies between marks, ``<!-- timm-compat:NAME -->`` and ``<!-- /timm-compat:NAME -->``; what
a person writes outside them, or in their place, stays theirs (``card_merge.py``).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from timm_compat.errors import ConfigError
from timm_compat.storage.facts import Facts, Result
from timm_compat.storage.files import PICTURE_FILE
from timm_compat.table import markdown_table
from timm_compat.vocabulary import printable

CARD_ROLES = ("extractor", "fused", "head", "model", "space")
PLACEHOLDER = "path-or-repo-id"
CLASS_NAMES = "class_names"  # key of the front matter: a search need not look at every head's config
MOST_NAMES, LONGEST_NAME = 100, 80  # that stand there; of larger heads none do
PIPELINE_TAGS = {
    "extractor": "image-feature-extraction",
    "model": "image-classification",
    "fused": "image-classification",
}

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = (_PACKAGE / "hub_cards", _PACKAGE.parent / "hub_cards")  # a wheel; an editable install or a bare checkout


def card_template(role: str) -> str:
    """The card template of one role, as text with ``string.Template`` placeholders.

    Raises:
        ConfigError: unknown role, or an installation without its templates.
    """
    if role not in CARD_ROLES:
        raise ConfigError(f"expected a card role out of {', '.join(CARD_ROLES)}; got {role!r}")
    for folder in _FOLDERS:
        path = folder / f"{role}.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ConfigError(f"hub_cards/{role}.md is missing from this installation of timm-compat; install it again")


def render_card(
    role: str,
    values: Mapping[str, str],
    tags: Sequence[str],
    facts: Facts | None = None,
    *,
    repo_id: str | None = None,
    picture: bool = False,
    relation: str | None = None,
    base_models: Sequence[str] = (),
    class_names: Sequence[str] = (),
    subfolder: str = "",
    timm_source: str | None = None,
) -> str:
    """A whole card: YAML front matter, then the filled template.

    Args:
        role: one of ``CARD_ROLES``.
        values: what the template asks for; others are left out.
        tags: for the Hub's search.
        facts: licence, origin, results.
        repo_id: the repository that the card is for; a placeholder stands in the usage if None.
        picture: whether a picture of the matrix lies beside the card.
        relation: to the base models: "finetune", "adapter" or "merge".
        base_models: Hub ids; the facts' own if empty.
        class_names: what a head or model knows, in order.
        subfolder: of the repository, where the component lies in one.
        timm_source: repository that plain timm reads; the component's own if None.

    Raises:
        ConfigError: unknown role, or the template asks for a value that is not given.
    """
    known = Facts() if facts is None else facts
    filled = {
        **{name: _one_line(value).replace("|", "\\|") for name, value in values.items()},  # many stand in a table
        **_places(repo_id or PLACEHOLDER, subfolder, timm_source),
        "results": _results(role, known, picture),
        "provenance": _provenance(known, base_models),
    }
    try:
        body = Template(card_template(role)).substitute(filled)
    except KeyError as error:
        given = ", ".join(sorted(values)) or "none"
        raise ConfigError(f"the {role} card needs the fact {error.args[0]!r}; given: {given}") from error
    origin = list(base_models) or ([] if known.base_model is None else [known.base_model])
    name = (repo_id or f"timm-compat {role}").rpartition("/")[2]
    front = _front_matter(role, name, tags, known, origin, relation, class_names)
    return f"---\n{front}\n---\n\n{body}"


def _places(source: str, subfolder: str, timm_source: str | None) -> dict[str, str]:
    """Where the component is, as Python: for ``from_pretrained``, and for plain timm, which knows no subfolders."""
    place = f'"{source}", subfolder="{subfolder}"' if subfolder else f'"{source}"'
    if timm_source is not None or not subfolder:
        name = f'"hf-hub:{source if timm_source is None else _one_line(timm_source)}"'
        return {"place": place, "timm_name": name, "timm_imports": "import timm"}
    folder = f"{{snapshot_download('{source}', allow_patterns='{subfolder}/*')}}/{subfolder}"
    imports = "import timm\nfrom huggingface_hub import snapshot_download"
    return {"place": place, "timm_name": f'f"local-dir:{folder}"', "timm_imports": imports}


def _front_matter(
    role: str,
    name: str,
    tags: Sequence[str],
    facts: Facts,
    origin: Sequence[str],
    relation: str | None,
    class_names: Sequence[str],
) -> str:
    from huggingface_hub import ModelCardData

    more: dict[str, Any] = {}
    if facts.results:
        more = {"model_name": name, "eval_results": _eval_results(facts.results), "metrics": ["accuracy"]}
    if origin and relation:
        more["base_model_relation"] = relation
    if 0 < len(class_names) <= MOST_NAMES and max(map(len, class_names)) <= LONGEST_NAME:
        more[CLASS_NAMES] = list(class_names)
    data = ModelCardData(
        library_name="timm" if role == "fused" else "timm-compat",
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        language=facts.language,
        tags=list(tags),
        base_model=list(origin) or None,
        datasets=[name for name in facts.datasets if not name.count(" ")] or None,
        pipeline_tag=PIPELINE_TAGS.get(role),
        **more,
    )
    return data.to_yaml().strip()


def _eval_results(results: Sequence[Result]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=result.dataset.replace(" ", "-"),
            dataset_name=result.dataset,
            dataset_split=result.split,
            metric_type="accuracy",
            metric_value=float(result.accuracy),
            metric_name=f"accuracy with {result.partner}" if result.partner else "accuracy",
        )
        for result in results
    ]


def _results(role: str, facts: Facts, picture: bool) -> str:
    parts = []
    if facts.results:
        lines = [["data set", "split", "images", "with", "accuracy"]]
        for result in facts.results:
            cells = (result.dataset, result.split, result.num_images or "", result.partner or "")
            lines.append([*(_one_line(str(cell)) for cell in cells), f"{result.accuracy:.3f}"])
        parts.append(markdown_table(lines, words=(0, 1, 3)))
    if facts.matrix is not None:
        parts.append("Accuracy of extractors (rows) under heads (columns):")
        parts.append(_matrix_table(role, facts.matrix, facts.member))
        if picture:
            parts.append(f"![Recombination matrix]({PICTURE_FILE})")
    return "\n\n".join(["## Results", *parts]) if parts else ""


def _matrix_table(role: str, matrix: Mapping[str, Any], member: str | None) -> str:
    rows, columns = list(matrix["rows"]), list(matrix["columns"])
    shown = [name for name in rows if role != "extractor" or member in (None, name)]
    across = [name for name in columns if role != "head" or member in (None, name)]
    lines = [["extractor \\ head", *map(_one_line, across)]]
    for name in shown:
        values = [matrix["accuracy"][rows.index(name)][columns.index(column)] for column in across]
        lines.append([_one_line(name), *("n/a" if value is None else f"{value:.3f}" for value in values)])
    return markdown_table(lines)


def _provenance(facts: Facts, base_models: Sequence[str]) -> str:
    lines = [f"- {_one_line(name)}: {_one_line(str(value))}" for name, value in sorted(facts.training.items())]
    if facts.base_model is not None and not base_models:
        commit = f" at commit {_code(facts.base_model_commit)}" if facts.base_model_commit else ""
        lines.insert(0, f"- started from the weights of {_code(facts.base_model)}{commit}")
    if facts.datasets:
        lines.append(f"- trained on: {_one_line(', '.join(facts.datasets))}")
    made = "\n".join(["## How it was made", "", *lines]) if lines else ""
    return "\n\n".join(part for part in (made, _citation(facts.citation)) if part)


def _citation(text: str | None) -> str:
    """A citation in a block of its own, which nothing in it closes."""
    if text is None:
        return ""
    lines = [("  " if line[:1].isspace() else "") + printable(line) for line in text.splitlines()]
    lines = [line.replace("`", "'").replace("<!", "< !") for line in lines]
    return "\n".join(["## Citation", "", "```bibtex", *lines, "```"])


def _code(value: str) -> str:
    """A value between backticks, which end at the first backtick inside."""
    return f"`{_one_line(value).replace('`', '')}`"


def _one_line(value: str) -> str:
    """Keep a value inside its line, and from posing as one of our marks, a tag or a link."""
    text = printable(value).replace("<", "&lt;")
    return text.replace("](", "]\\(")
