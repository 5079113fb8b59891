"""Exceptions of Lathe. Their texts are those of the command line."""


class LatheError(Exception):
    """Something went wrong: the text says what, what was expected, and the next move."""

    __module__ = "lathe"


class LatheValueError(LatheError, ValueError):
    """What was asked for makes no sense."""

    __module__ = "lathe"


class LatheFileNotFoundError(LatheError, FileNotFoundError):
    """There is nothing at the path."""

    __module__ = "lathe"
