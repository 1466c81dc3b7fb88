"""The exceptions that end a step with one line instead of a traceback."""

import re

HEAD, TAIL = 700, 400  # characters of a longer message that are shown


class UserError(Exception):
    """Something the user gave cannot be used: shown as one line, without a traceback.

    The message names the value, what was expected, and the way out. Values come from anywhere, so
    here the line is kept one, its characters visible, and its length bounded.
    """

    def __init__(self, message: str) -> None:
        line = re.sub(r"\s*[\r\n]\s*", " ", message)
        if len(line) > HEAD + TAIL:
            # The middle: what it is about stands at the beginning, the way out at the end.
            line = f"{line[:HEAD]} [{len(line) - HEAD - TAIL:,} characters] {line[-TAIL:]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved and can go on
    """The process was asked to stop (SIGTERM, Ctrl-C and the like) and has saved its state."""
