"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """What was wrong, where, and what to do about it: shown as one line, without a traceback."""


def one_line(error: Exception) -> str:
    """Another library's message, which may take several."""
    return " ".join(str(error).split())
