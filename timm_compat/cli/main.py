"""The ``timm-compat`` command: its subcommands, and how errors reach the shell."""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from timm_compat._version import __version__
from timm_compat.cli import combine, demo, evaluate, gallery, join, probe, recipes, share, split, swap
from timm_compat.cli.options import said_on_stderr
from timm_compat.errors import CompatError

COMMANDS = (demo, split, probe, join, swap, recipes, evaluate, share, combine, gallery)
USER_ERROR = 2
INTERRUPTED = 130
READER_GONE = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words of the command line; those of the process if None.

    Returns:
        Exit code: 0; 1 where a part of the work could not be done, and was told of; 2 for an error that the user can
        mend (one line on standard error); 130 when interrupted; 141 when nobody reads the output any more.
    """
    parser = _Parser(prog="timm-compat", description="Compatible feature extractors for timm.")
    parser.add_argument("--version", action="version", version=f"timm-compat {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    options, rest = parser.parse_known_args(arguments)
    options.words = list(sys.argv[1:] if arguments is None else arguments)  # as given, for reports
    # argparse does not accept overrides after an option: train RECIPE --output DIR training.epochs=5
    if rest and hasattr(options, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        options.overrides += rest
    elif rest:
        options.parser.refuse(rest)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character (cp1252, say) prints its escape sequence instead of failing.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ended_cleanly(), said_on_stderr():
            code: int | None = options.run(options)
            sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    except CompatError as error:
        print(f"timm-compat: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(
            "timm-compat: interrupted; files that were written are complete, and --resume continues a run",
            file=sys.stderr,
        )
        return INTERRUPTED
    return code or 0


class _Parser(argparse.ArgumentParser):
    """Of the command and, as ``add_subparsers`` makes them alike, of every command below it."""

    def __init__(self, **settings: Any) -> None:
        # argparse takes --test for --test-split, until another option begins like that and the line means that one.
        super().__init__(**settings, allow_abbrev=False)
        self.set_defaults(parser=self)

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """End with an error that names the words, and the options that they may have been short for."""
        options = sorted(word for action in self._actions for word in action.option_strings)
        begun = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
        meant = [option for option in options if any(option.startswith(word) for word in begun)]
        hint = f"; write {' or '.join(meant)} in full" if meant else ""
        self.error(f"unrecognized arguments: {' '.join(words)}{hint}")


@contextlib.contextmanager
def _ended_cleanly() -> Iterator[None]:
    """A block in which SIGTERM removes half-written folders, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _reader_gone() -> int:
    """End silently, as other commands do when ``| head`` has read enough."""
    # Python would flush what is left again at exit, and print an error.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_GONE
