"""What every event of the page needs: its listener's options, language, upload, and errors as people see them."""

import html
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.i18n import I18nData
from gradio.utils import get_upload_folder

from app.texts import KEY_PREFIX, format_time, preferred_language, translate, translate_error
from app.transcriber import OvertimeError
from app.turns import QueueFullError
from stages.runtime.errors import UserError

# Options of event listeners. gradio's own preprocessing leaves files behind; what it would check, ``upload_path`` does.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
# Answered at once; an error would not be shown.
UNQUEUED: dict[str, Any] = {**PRIVATE, "queue": False, "show_progress": "hidden"}
Upload = dict[str, Any]  # a file, or the last recording, as the browser sends it
log = logging.getLogger(__name__)


def localized(key: str) -> I18nData:
    """A text that the browser puts in its own language."""
    return I18nData(KEY_PREFIX + key)


def request_language(request: gr.Request) -> str:
    return preferred_language(request.headers.get("accept-language"))


def request_client(request: gr.Request) -> str:
    """The address of whoever asks."""
    return request.client.host if request.client else ""


def request_page(request: gr.Request) -> str:
    """What tells an open page from all others."""
    return request.session_hash or ""


def upload_path(file: object, language: str = "en") -> Path:
    """The path of an upload, which lies in gradio's own folder, whatever a client says; raises UserError."""
    path = Path(str(file.get("path"))).resolve() if isinstance(file, Mapping) else Path()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise UserError(translate(language, "gone"))
    return path


@contextmanager
def as_gradio_errors(language: str) -> Iterator[None]:
    """Show what a person can fix in its own sentence; log anything else, and show none of its details."""
    try:
        yield
    except gr.Error:
        raise
    except QueueFullError:
        raise gradio_error(translate(language, "queue_full"), language) from None
    except OvertimeError as error:
        raise gradio_error(translate(language, "timeout", limit=format_time(error.seconds)), language) from None
    except UserError as error:
        raise gradio_error(translate_error(language, str(error)), language) from None
    except Exception:
        log.exception("a visitor was told only that something went wrong")
        raise gradio_error(translate(language, "broken"), language) from None


def gradio_error(message: str, language: str) -> gr.Error:
    """It stays until somebody closes it; gradio would take the sentence for HTML."""
    text = html.escape(message, quote=False)
    return gr.Error(text, title=translate(language, "failed"), duration=None, print_exception=False)
