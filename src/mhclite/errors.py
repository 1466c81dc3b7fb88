"""The exceptions that end a step with one line instead of a traceback."""

import re


def bounded(text: str, head: int, tail: int) -> str:
    """A message without its middle, if it has more characters than its two ends together.

    What it is about stands at its beginning, the way out at its end.
    """
    left_out = len(text) - head - tail
    return text if left_out <= 0 else f"{text[:head]} [{left_out:,} characters] {text[-tail:]}"


class UserError(Exception):
    """Something the user gave cannot be used: shown as one line, without a traceback.

    The message names the value, what was expected, and the way out. Values come from anywhere, so
    here the line is kept one, its characters visible, and its length bounded.
    """

    def __init__(self, message: str) -> None:
        line = re.sub(r"\s*[\r\n]\s*", " ", message)
        visible = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
        super().__init__(bounded(visible, head=700, tail=400))


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved and can go on
    """The process was asked to stop (SIGTERM, Ctrl-C and the like) and has saved its state."""
