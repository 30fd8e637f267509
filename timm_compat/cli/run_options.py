"""Options of every command that passes images through networks, and the word about what they came to."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from timm_compat.models.run_options import PRECISIONS, RunKeywords, RunOptions

LOGGER = "timm_compat.models.passes"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Device, batch size, precision, workers."""
    parser.add_argument("--device", metavar="NAME", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images at a time (default: chosen for device, size and network)"
    )
    parser.add_argument("--amp", choices=PRECISIONS, help="automatic mixed precision (default: float32)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that decode image files (default: %(default)s)"
    )


def run_options(options: argparse.Namespace) -> RunOptions:
    """Those options.

    Raises:
        ConfigError: one is out of range, or the device is not there.
    """
    return RunOptions(options.device, options.batch_size, options.amp, options.workers)


def run_keywords(options: argparse.Namespace) -> RunKeywords:
    """The same as keywords of functions that take them.

    Raises:
        ConfigError: one is out of range, or the device is not there.
    """
    given = run_options(options)
    return RunKeywords(device=given.device, batch_size=given.batch_size, amp=given.amp, workers=given.workers)


@contextmanager
def said_on_stderr() -> Iterator[None]:
    """For a block, standard error gets what the passes log: device, batch size, precision; each line once."""
    logger, handler = logging.getLogger(LOGGER), _OnStandardError()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(min(logging.INFO, level or logging.INFO))
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _OnStandardError(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.said:
            self.said.add(text)
            print(f"timm-compat: {text}", file=sys.stderr, flush=True)
