"""What a page needs beside the pipeline, and how to have it."""

from collections.abc import Iterator
from contextlib import contextmanager

from stages.runtime.errors import UserError

LIBRARIES = ("jinja2", "plotly")


@contextmanager
def explain_missing_library() -> Iterator[None]:
    """Raise UserError with the remedy where a library that draws pages is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        command = "python -m pip install --constraint constraints.txt --editable '.[experiments]'"
        raise UserError(f"the page needs {library}, which is not installed: run `{command}`") from None
