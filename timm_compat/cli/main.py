"""The ``timm-compat`` command: its subcommands, and how errors reach the shell."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from timm_compat._version import __version__
from timm_compat.cli import adapt, combine, demo, evaluate, finetune, join, share, train, transfer
from timm_compat.errors import CompatError

COMMANDS = (demo, train, join, adapt, transfer, finetune, evaluate, share, combine)
USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words of the command line; those of the process if None.

    Returns:
        Exit code: 0, 2 for an error that the user can mend (one line on standard error), 130 when interrupted.
    """
    parser = argparse.ArgumentParser(prog="timm-compat", description="Compatible feature extractors for timm.")
    parser.add_argument("--version", action="version", version=f"timm-compat {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    options, rest = parser.parse_known_args(arguments)
    options.words = list(sys.argv[1:] if arguments is None else arguments)  # as given, for reports
    # argparse gives up on overrides that stand behind an option: train RECIPE --output DIR training.epochs=5
    if rest and hasattr(options, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        options.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)  # so that half-written folders vanish, as they do on Ctrl-C
    try:
        options.run(options)
    except CompatError as error:
        print(f"timm-compat: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("timm-compat: interrupted; what was written is whole, --resume goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _end(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)
