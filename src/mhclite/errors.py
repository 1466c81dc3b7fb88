"""The exceptions that end a step with one line instead of a traceback."""


class UserError(Exception):
    """Something the user gave cannot be used: shown as one line, without a traceback.

    The message names the value, what was expected, and the way out.
    """


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved and can go on
    """The process was asked to stop (SIGTERM, SIGUSR1, Ctrl-C) and has saved its state."""
