"""``timm-compat push``, ``pull``, ``search`` and ``info``: components on the Hugging Face Hub."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from timm_compat.cli.options import add_place_options, place
from timm_compat.errors import ConfigError
from timm_compat.hub.loading import load, pull, read_facts
from timm_compat.hub.push import push_fused
from timm_compat.hub.search import DEFAULT_LIMIT, search
from timm_compat.imagenet import listed_words
from timm_compat.models.composed import CompatModel
from timm_compat.models.extractor import CompatExtractor
from timm_compat.space import CompatSpace
from timm_compat.storage.component import Component
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import ROOT_KEY
from timm_compat.storage.source import Source
from timm_compat.vocabulary import printable


def add_parser(commands: Any) -> None:
    """Add the four commands to the parser's commands."""
    _add_push(commands)
    fetch = commands.add_parser("pull", help="download a component from the Hub into a new folder, and check it")
    fetch.add_argument("repo_id", metavar="ID")
    fetch.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    fetch.set_defaults(run=run_pull)
    info = commands.add_parser("info", help="describe a component without loading its weights")
    info.add_argument("location", metavar="ID|DIR")
    info.set_defaults(run=run_info)
    for parser in (fetch, info):
        add_place_options(parser)
    find = commands.add_parser("search", help="find components on the Hub")
    find.add_argument("--space", metavar="ID|DIR|FINGERPRINT", help="a space, any component of it, or its fingerprint")
    find.add_argument(
        "--fits", metavar="ID|DIR", help="what works with this component: for a head, the extractors of its space"
    )
    find.add_argument("--role", help="extractor, head, model, or space (listed with the number of its components)")
    find.add_argument("--classes", metavar="A,B", help="class names that a head or model must have")
    find.add_argument("--dim", type=int, metavar="D", help="feature dimension of the space")
    find.add_argument("--author", metavar="NAME", help="user or organisation")
    find.add_argument(
        "--limit", type=int, default=DEFAULT_LIMIT, metavar="N", help="show at most N results (default: %(default)s)"
    )
    find.set_defaults(run=run_search)
    for parser in (fetch, info, find):
        parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_push(commands: Any) -> None:
    parser = commands.add_parser("push", help="publish a component's folder on the Hub")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder that save_pretrained wrote")
    parser.add_argument("repo_id", metavar="ID", help="owner/name; created if it does not exist")
    parser.add_argument(
        "--subfolder", metavar="DIR", default="", help="subfolder of the repository, for several components in one"
    )
    parser.add_argument(
        "--license", metavar="ID", help="such as apache-2.0 (default: the component's own; else none is stated)"
    )
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private", dest="private", action="store_true", default=None, help="create the repository as private"
    )
    visibility.add_argument("--public", dest="private", action="store_false", help="create the repository as public")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; created if it does not exist")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument("--overwrite-card", action="store_true", help="replace the model card, whatever it holds")
    parser.add_argument("--force", action="store_true", help="push even if the repository holds something else")
    parser.add_argument("--fuse", action="store_true", help="publish a composed model as a plain timm model")
    parser.add_argument(
        "--thin",
        action="store_true",
        help="leave out an extractor's unchanged backbone weights and refer to the base model that has them",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run_push)


def run_push(options: argparse.Namespace) -> None:
    """Run ``push``.

    Raises:
        CompatError: any of ours.
    """
    component = load(options.folder)
    settings = {
        "subfolder": options.subfolder,
        "private": options.private,
        "revision": options.revision,
        "create_pr": options.create_pr,
        "commit_message": options.message,
        "overwrite_card": options.overwrite_card,
        "force": options.force,
    }
    if isinstance(component, Component):
        source = _push_component(component, options, settings)
    else:
        stated = Facts.from_config(read_facts(options.folder)[0][ROOT_KEY]).license
        source = push_fused(options.folder, options.repo_id, license_id=_license(options, stated), **settings)
    facts = {"repo_id": source.location, "commit": source.commit, "sha256": dict(source.sha256)}
    if source.subfolder:
        facts["subfolder"] = source.subfolder
    line = f"{'/'.join(filter(None, (source.location, source.subfolder)))} at commit {source.commit}"
    if source.pull_request is not None:
        facts["pull_request"] = source.pull_request
        line = f"{line}, to be merged: {printable(source.pull_request)}"
    print(json.dumps(facts) if options.json else line)


def _push_component(component: Component, options: argparse.Namespace, settings: dict[str, Any]) -> Source:
    component.facts = replace(component.facts, license=_license(options, component.facts.license))
    if options.fuse:
        if not isinstance(component, CompatModel):
            raise ConfigError("--fuse: expected a composed model, got another component; see timm-compat compose")
        settings["fused"] = True
    if options.thin:
        if not isinstance(component, CompatExtractor):
            raise ConfigError("--thin: expected an extractor, got another component; drop it")
        settings["thin"] = True
    return component.push_to_hub(options.repo_id, **settings)


def _license(options: argparse.Namespace, stated: str | None) -> str | None:
    license_id = options.license or stated
    if license_id is None and sys.stdin.isatty():
        print("Licence (an id such as apache-2.0; empty to state none): ", end="", file=sys.stderr, flush=True)
        license_id = sys.stdin.readline().strip() or None
    if license_id is None:
        print("timm-compat: no licence is stated; others will not know what they may do (--license)", file=sys.stderr)
    return license_id


def run_pull(options: argparse.Namespace) -> None:
    """Run ``pull``.

    Raises:
        CompatError: any of ours.
    """
    folder = pull(options.repo_id, options.output, **place(options))
    names = sorted(path.name for path in folder.iterdir())
    print(json.dumps({"output": str(folder), "files": names}) if options.json else f"{folder}: {', '.join(names)}")


def run_info(options: argparse.Namespace) -> None:
    """Run ``info``.

    Raises:
        CompatError: any of ours.
    """
    config, files = read_facts(options.location, **place(options))
    ours = dict(config[ROOT_KEY])
    space = CompatSpace.from_config(ours.pop("space", None))
    facts = {
        "location": str(options.location),
        "commit": files.commit,
        "role": ours.pop("role"),
        "architecture": config.get("architecture"),
        "space": space.fingerprint,
        "feature_dim": space.feature_dim,
        "level": space.level,
        "normalization": space.normalization,
        "methods": list(space.methods),
        **ours,
    }
    known = {key: value for key, value in facts.items() if value not in (None, [], {})}
    print(json.dumps(known) if options.json else "\n".join(_line(key, value) for key, value in known.items()))


def run_search(options: argparse.Namespace) -> None:
    """Run ``search``.

    Raises:
        CompatError: any of ours.
    """
    found = search(
        _fingerprint(options.space),
        fits=options.fits,
        role=options.role,
        classes=options.classes.split(",") if options.classes else (),
        dim=options.dim,
        author=options.author,
        limit=options.limit,
    )
    for repo_id, reason in (*found.refused, *found.faults):
        print(f"timm-compat: left out {printable(repo_id)}: {printable(reason)}", file=sys.stderr)
    if found.more:
        print(f"timm-compat: there may be more than these {len(found)}: see --limit", file=sys.stderr)
    if options.json:
        print(json.dumps([{**asdict(row), **_counted(found.members.get(row.space))} for row in found]))
        return
    print(found.to_markdown() if found else "nothing that fits")
    for fingerprint, members in found.members.items():
        if not members["space"]:
            parts = ", ".join(f"{count} {kind}" for kind, count in _counted(members).items())
            print(f"not published itself: {printable(fingerprint)} ({parts})")


def _counted(members: Mapping[str, int] | None) -> dict[str, int]:
    return {f"{role}s": members[role] for role in ("extractor", "head", "model")} if members else {}


def _fingerprint(space: str | None) -> str | None:
    if space is None or ("/" not in space and not Path(space).is_dir()):
        return space
    return CompatSpace.from_config(read_facts(space)[0][ROOT_KEY].get("space")).fingerprint


def _line(key: str, value: Any) -> str:
    if key == "class_names" and isinstance(value, list):
        value = f"{len(value):,}: {listed_words([str(name) for name in value])}"
    return f"{_short(key)}: {_short(value)}"


def _short(value: object) -> str:
    text = printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return text if len(text) <= 200 else text[:197] + "..."
