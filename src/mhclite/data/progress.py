"""Progress on stderr: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import datetime
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")
LOG_SECONDS = 15.0


class Meter:
    """Shows how many documents are done, how fast, and how long the rest will take."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._before = what, total, done
        self._documents = self._tokens = 0
        self._start = self._last = time.monotonic()
        self._bar = (
            tqdm(desc=what, total=total, initial=done, unit=" documents", smoothing=0.05)
            if sys.stderr.isatty()
            else None
        )

    def add(self, documents: int, tokens: int = 0) -> None:
        """Count documents, and the tokens made of them, that were done since the last call."""
        self._documents += documents
        self._tokens += tokens
        now = time.monotonic()
        if self._bar is not None:
            if tokens:
                speed = self._tokens / max(now - self._start, 1e-9) / 1e6
                self._bar.set_postfix_str(f"{speed:.2f} M tokens/s", refresh=False)
            self._bar.update(documents)
        elif now - self._last >= LOG_SECONDS and self._documents:
            self._last = now
            log.info("%s: %s", self._what, self._line(now - self._start))

    def _line(self, seconds: float) -> str:
        done = self._before + self._documents
        left = (self._total - done) * seconds / self._documents
        speed = f"{self._documents / seconds:,.0f} a second"
        if self._tokens:
            speed += f", {self._tokens / seconds / 1e6:.2f} M tokens/s"
        rest = datetime.timedelta(seconds=round(left))
        return f"{done:,} of {self._total:,} documents, {speed}, {rest} left"

    def close(self) -> None:
        """Finish the bar, as it stands."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def meter(what: str, total: int, done: int = 0) -> Iterator[Meter]:
    """A `Meter` for a `with` block.

    Args:
        what: the activity, e.g. "tokenizing".
        total: number of all documents.
        done: documents that an earlier start finished; they do not count for the speed.
    """
    shown = Meter(what, total, done)
    try:
        yield shown
    finally:
        shown.close()


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Pass items on and show how many there were."""
    with meter(what, total) as shown:
        for item in items:
            yield item
            shown.add(1)


@contextmanager
def alive(what: str) -> Iterator[None]:
    """A line now and then, while something goes on that does not tell how far it is."""
    ended, start = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(LOG_SECONDS):
            log.info("%s: since %.0f s", what, time.monotonic() - start)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
