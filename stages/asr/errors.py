"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """What was wrong, where, and what to do about it: shown as one line, without a traceback."""
