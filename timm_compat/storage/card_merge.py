"""A new card over one that a person may have edited: only our marked sections and our metadata are refreshed."""

import re
from bisect import bisect
from collections.abc import Iterator, Mapping
from typing import Any

OUR_TAGS = "timm-compat"
MARK = re.compile(r"<!-- (?P<end>/?)timm-compat:(?P<name>[\w-]+) -->\n?")
LISTS = ("base_model", "datasets", "metrics")
OURS_ALONE = ("model-index", "base_model_relation", "pipeline_tag", "library_name", "class_names")


def merge_cards(old: str, new: str, replaced: Mapping[str, Any] | None = None) -> str:
    """The old card with our sections and metadata taken from the new one.

    A section that the old card lacks was removed by somebody and stays away; text outside the sections stays, and a
    card without any text becomes the new one. Of the metadata, what we wrote is replaced: our tags, and what stands in
    ``replaced``; what a person wrote and the new card does not know (a licence, say) stays.

    Args:
        old: the card as it is published.
        new: the card as ``render_card`` gives it.
        replaced: our part of the ``config.json`` of the component that the old card was written for; None without.
    """
    old_body, new_body = _split(old)[1], _split(new)[1]
    body = _refreshed(old_body, new_body) if old_body.strip() else new_body
    return f"---\n{_merged_metadata(old, new, replaced)}\n---\n{body}"


def _refreshed(old: str, new: str) -> str:
    sections = {name: new[start:end] for name, start, end in _sections(new)}
    parts, position = [], 0
    for name, start, end in _sections(old):
        parts += [old[position:start], sections.get(name, old[start:end])]
        position = end
    return "".join([*parts, old[position:]])


def _sections(text: str) -> Iterator[tuple[str, int, int]]:
    # Every section, marks included, from an opening mark to the next closing one of its name.
    marks = list(MARK.finditer(text))
    closing: dict[str, list[int]] = {}
    for mark in marks:
        if mark["end"]:
            closing.setdefault(mark["name"], []).append(mark.start())
    position = 0
    for mark in marks:
        ends = closing.get(mark["name"], [])
        following = bisect(ends, mark.start())
        if mark["end"] or mark.start() < position or not mark[0].endswith("\n") or following == len(ends):
            continue
        position = ends[following] + len(f"<!-- /timm-compat:{mark['name']} -->")
        yield mark["name"], mark.start(), position


def _split(card: str) -> tuple[str, str]:
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n", card, re.DOTALL)
    return (match[1], card[match.end() :]) if match else ("", f"\n{card}")


def _merged_metadata(old: str, new: str, replaced: Mapping[str, Any] | None) -> str:
    from huggingface_hub import ModelCardData

    theirs, ours = _metadata(old), _metadata(new)
    tags = [str(tag) for tag in _list(theirs.get("tags")) if not str(tag).startswith(OUR_TAGS)]
    said = {} if replaced is None else _said(replaced)
    kept = {key: value for key, value in theirs.items() if key not in LISTS and not (key in OURS_ALONE and said)}
    merged = {**kept, **ours, "tags": [*_list(ours.get("tags")), *tags]}
    for key in LISTS:
        others = [value for value in _list(theirs.get(key)) if value not in said.get(key, ())]
        values = list(dict.fromkeys(map(str, [*_list(ours.get(key)), *others])))
        merged |= {key: values} if values else {}
    return ModelCardData(**merged, ignore_metadata_errors=True).to_yaml().strip()


def _said(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    # What a card of ours says in its lists about a component with this config.
    parts = config.get("parts")
    sources = parts.values() if isinstance(parts, dict) else ()
    bases = [part.get("repo_id") for part in sources if isinstance(part, dict)]
    metrics = ["accuracy"] if config.get("metrics") else []
    return {
        "base_model": [config.get("base_model"), *bases],
        "datasets": _list(config.get("datasets")),
        "metrics": metrics,
    }


def _metadata(card: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(_split(card)[0])
    except yaml.YAMLError:  # a person's typing error: their text stays, ours is written
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]
