"""The one kind of error that is the user's to mend, and what the disk has to do with the others."""

import errno


class UserError(Exception):
    """What was wrong, where, and what to do about it: shown as one line, without a traceback."""


def one_line(error: Exception) -> str:
    """Another library's message, which may take several."""
    return " ".join(str(error).split())


def is_full(error: BaseException) -> bool:
    """Whether a disk or a quota is used up; libraries wrap the system's error in their own."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        sign in str(error) for sign in ("No space left", "os error 28", "quota exceeded", "file write failed")
    )
