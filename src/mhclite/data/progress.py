"""Progress on stderr: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")
LOG_SECONDS = 15.0


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` on and show how many there were.

    Args:
        items: of any number.
        what: the activity, e.g. "tokenizing".
        total: how many documents are expected, if known.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=" documents", smoothing=0.05)
        return
    start = last = time.monotonic()
    of = f" of {total:,}" if total else ""
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_SECONDS:
            log.info(
                "%s: %s%s documents, %.0f a second", what, f"{count:,}", of, count / (now - start)
            )
            last = now
