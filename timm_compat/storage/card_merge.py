"""A new card over one that a person may have edited: only our marked sections and our metadata are refreshed."""

import re
from typing import Any

OUR_TAGS = "timm-compat"
SECTION = re.compile(r"<!-- timm-compat:(?P<name>[\w-]+) -->\n.*?<!-- /timm-compat:(?P=name) -->", re.DOTALL)
LISTS = ("datasets", "metrics")


def merge_cards(old: str, new: str) -> str:
    """The old card with our sections and metadata taken from the new one.

    A section that the old card lacks was removed by somebody and stays away; text outside the sections stays. Of the
    metadata, tags of ours are replaced and others kept; what the new card does not know (a licence, say) stays.

    Args:
        old: the card as it is published.
        new: the card as ``render_card`` gives it.
    """
    sections = {match["name"]: match[0] for match in SECTION.finditer(new)}
    body = SECTION.sub(lambda match: sections.get(match["name"], match[0]), _split(old)[1])
    return f"---\n{_merged_metadata(old, new)}\n---\n{body}"


def _split(card: str) -> tuple[str, str]:
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n", card, re.DOTALL)
    return (match[1], card[match.end() :]) if match else ("", f"\n{card}")


def _merged_metadata(old: str, new: str) -> str:
    from huggingface_hub import ModelCardData

    theirs, ours = _metadata(old), _metadata(new)
    tags = [str(tag) for tag in _list(theirs.get("tags")) if not str(tag).startswith(OUR_TAGS)]
    merged = {**theirs, **ours, "tags": [*_list(ours.get("tags")), *tags]}
    for key in LISTS:
        values = list(dict.fromkeys([*_list(ours.get(key)), *_list(theirs.get(key))]))
        merged |= {key: values} if values else {}
    return ModelCardData(**merged, ignore_metadata_errors=True).to_yaml().strip()


def _metadata(card: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(_split(card)[0])
    except yaml.YAMLError:  # a person's typing error: their text stays, ours is written
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]
