"""Whoever uses the page: their language, what they handed in, and how they are told of what went wrong."""

import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from gradio.i18n import I18nData
from gradio.utils import get_upload_folder

from app.hearing import OvertimeError
from app.texts import PREFIX, clock, language_of, say
from stages.runtime.errors import UserError

# How events are listened to. gradio's own preprocessing leaves files behind; what it would check, ``uploaded`` checks.
PRIVATE = {"api_visibility": "private", "preprocess": False}
LIGHT = {**PRIVATE, "queue": False, "show_progress": "hidden"}  # answered at once; an error would not be shown
log = logging.getLogger(__name__)


def label(key: str) -> I18nData:
    """A text that the browser puts in its own language."""
    return I18nData(PREFIX + key)


def language_in(request: gr.Request) -> str:
    return language_of(request.headers.get("accept-language"))


def uploaded(file: dict, language: str = "en") -> Path:
    """The path of an upload, which lies in gradio's own folder, whatever a client says; raises UserError."""
    path = Path(str(file.get("path"))).resolve() if isinstance(file, dict) else Path()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise UserError(say(language, "gone"))
    return path


@contextmanager
def told(language: str) -> Iterator[None]:
    """What a person can mend is told in its sentence; anything else is logged, and told without its innards.

    A UserError of another module stays in English, below a title in the person's own language.
    """
    try:
        yield
    except gr.Error:
        raise
    except OvertimeError as error:
        raise shown(say(language, "timeout", limit=clock(error.seconds)), language) from None
    except UserError as error:
        raise shown(str(error), language) from None
    except Exception:
        log.exception("a visitor was told only that something went wrong")
        raise shown(say(language, "broken"), language) from None


def shown(message: str, language: str) -> gr.Error:
    """It stays until somebody closes it; gradio would take the sentence for HTML."""
    text = html.escape(message, quote=False)
    return gr.Error(text, title=say(language, "failed"), duration=None, print_exception=False)
