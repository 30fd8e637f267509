"""``timm-compat gallery build | search | upgrade``: stored embeddings of an image folder that outlive their model."""

import argparse
import json
from typing import Any

from timm_compat.cli.options import add_run_options, run_keywords
from timm_compat.gallery.building import build
from timm_compat.gallery.planning import LABELS, SAMPLE, plan
from timm_compat.gallery.searching import SEARCHES, Gallery
from timm_compat.gallery.stored import Stored
from timm_compat.gallery.upgrading import APPLICABLE, upgrade


def add_parser(commands: Any) -> None:
    """Add this command with its own three to the parser's commands."""
    parser = commands.add_parser(
        "gallery",
        help="embeddings of an image folder that survive an upgrade of the model",
        description="Store the embeddings of an image folder with ids and hashes, search them, and move them to "
        "another model in the way that measurements on a sample recommend.",
    )
    own = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_build(own)
    _add_search(own)
    _add_upgrade(own)


def _add_build(commands: Any) -> None:
    parser = commands.add_parser("build", help="embed an image folder, or what is new in it since the last build")
    parser.add_argument("images", metavar="FOLDER", help="folder of images, at any depth")
    parser.add_argument("gallery", metavar="GALLERY", help="a new folder, or a gallery to bring up to date")
    parser.add_argument("--extractor", metavar="ID|DIR", help="the extractor; needed for a new gallery")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be decoded")
    _finish(parser, run_build)


def _add_search(commands: Any) -> None:
    parser = commands.add_parser("search", help="find the stored images nearest to given images")
    parser.add_argument("gallery", metavar="GALLERY")
    parser.add_argument("queries", nargs="+", metavar="IMAGE", help="files, or folders of them")
    parser.add_argument(
        "--extractor",
        action="append",
        default=[],
        metavar="ID|DIR",
        help="extractor of the queries, any of the gallery's space (default: its own); repeatable if the gallery holds "
        "several spaces",
    )
    parser.add_argument("-k", type=int, default=10, metavar="N", help="number of nearest images (default: %(default)s)")
    parser.add_argument(
        "--index",
        choices=SEARCHES,
        default=SEARCHES[0],
        help="exact search with torch, or a stored faiss index (default: %(default)s)",
    )
    _finish(parser, run_search)


def _add_upgrade(commands: Any) -> None:
    parser = commands.add_parser(
        "upgrade",
        help="compare the ways to move to another model, and move",
        description="Without --apply: compare all ways on a sample of the stored images and recommend one, which may "
        "be to keep the model. With --apply: move in that way; run the same command again to continue after a stop.",
    )
    parser.add_argument("gallery", metavar="GALLERY")
    parser.add_argument("--to", required=True, metavar="ID|DIR", help="the new extractor")
    parser.add_argument(
        "--sample", type=int, default=SAMPLE, metavar="N", help="images of the sample (default: %(default)s)"
    )
    parser.add_argument("--labels", choices=LABELS, help="take the name of an image's folder as its class")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of the sample (default: %(default)s)"
    )
    parser.add_argument("--apply", choices=APPLICABLE, metavar="WAY", help=f"move in this way: {', '.join(APPLICABLE)}")
    _finish(parser, run_upgrade)


def _finish(parser: argparse.ArgumentParser, run: Any) -> None:
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run_build(options: argparse.Namespace) -> None:
    """Run ``gallery build``.

    Raises:
        CompatError: any of ours.
    """
    gallery = build(
        options.images, options.gallery, options.extractor, skip_corrupt=options.skip_corrupt, **run_keywords(options)
    )
    facts = {"gallery": str(gallery.folder), **gallery.to_dict(), "report": gallery.report.to_dict()}
    print(json.dumps(facts) if options.json else f"{gallery.report}\n{_described(gallery)}")


def run_search(options: argparse.Namespace) -> None:
    """Run ``gallery search``.

    Raises:
        CompatError: any of ours.
    """
    gallery = Gallery(Stored.open(options.gallery))
    found = gallery.search(
        options.queries, options.k, extractor=options.extractor, index=options.index, **run_keywords(options)
    )
    print(json.dumps(found.to_dict()) if options.json else found)


def run_upgrade(options: argparse.Namespace) -> None:
    """Run ``gallery upgrade``.

    Raises:
        CompatError: any of ours.
    """
    running = run_keywords(options)
    settings: dict[str, Any] = {"sample": options.sample, "seed": options.seed, **running}
    if options.apply is None:
        found = plan(options.gallery, options.to, labels=options.labels, **settings)
        print(json.dumps(found.to_dict()) if options.json else found)
        return
    gallery = upgrade(options.gallery, options.to, options.apply, **settings)
    facts = {"gallery": str(gallery.folder), **gallery.to_dict(), "report": gallery.report.to_dict()}
    print(json.dumps(facts) if options.json else f"{gallery.report}\n{_described(gallery)}")


def _described(gallery: Gallery) -> str:
    facts = gallery.to_dict()
    kinds = [f"{found['images']:,} of {key} ({found['made_by']})" for key, found in facts["rows"].items()]
    unfinished = (
        f"; an upgrade ({facts['upgrade']}) is unfinished: run the same command again" if facts["upgrade"] else ""
    )
    return f"{gallery.folder}: {len(gallery):,} images; {', '.join(kinds)}{unfinished}"
