"""What the demo's server answers: the page's own addresses, nothing that reaches other hosts or other folders."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import gradio
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.texts import for_browser
from stages.params import App
from stages.runtime.errors import UserError

STYLE = Path(__file__).with_name("style.css")
# Of all that gradio answers: it also fetches addresses for others, runs programs, and shows what people did.
PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json"}
CALLS = {"info", "app_id", "startup-events", "theme.css", "upload", "upload_progress", "reset", "cancel", "heartbeat"}
CALLS |= {"queue", "run", "call", "login_check", "user"}
SESSIONS = 100  # whose state is kept; beyond, whoever was away longest has no last transcript to correct
HEADERS = {
    # A page that asks no other host, whatever a text or a library puts into it.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gate:
    """ASGI middleware: 404 for every address that the page does not need, and headers that bind the browser."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        app = self.app if is_open(scope["path"]) else PlainTextResponse("There is nothing here.", 404)
        await app(scope, receive, send_with_headers)


def is_open(path: str) -> bool:
    """Whether an address, percent signs resolved, is one of the page's own."""
    path = unquote(path)  # once more: gradio resolves a file's name itself
    if path in PAGES or path.startswith(("/assets/", "/static/")):
        return True
    if not path.startswith("/gradio_api/"):
        return False
    call = path.removeprefix("/gradio_api/")
    if call.startswith("file="):
        return "://" not in call and ".." not in Path(call).parts
    return call.split("/")[0] in CALLS


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can read, for what people upload and download; gone at the end."""
    name, before = "GRADIO_TEMP_DIR", os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="viska-", ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


@contextmanager
def serving(page: gradio.Blocks, settings: App, host: str, port: int, share: bool) -> Iterator[str]:
    """The page on a port; gives its address. Raises UserError where the port is taken."""
    page.queue(max_size=settings.queue, default_concurrency_limit=2, api_open=False)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            state_session_capacity=SESSIONS,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=settings.max_megabytes * 1_000_000,
            allowed_paths=[],
            show_error=False,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            footer_links=["api", "settings"],
            i18n=gradio.I18n(**for_browser()),
            theme=theme(),
            css_paths=STYLE,
            app_kwargs={"middleware": [Middleware(Gate)]},
        )
    except OSError as error:
        if error.errno not in (None, errno.EADDRINUSE, errno.EACCES):
            raise
        raise UserError(
            f"port {port} of {host} cannot be had: another program has it; choose one with --port"
        ) from None
    try:
        yield page.share_url or page.local_url
    finally:
        page.close(verbose=False)


def theme() -> gradio.themes.Base:
    """Calm, with the computer's own fonts, and white on green dark enough to be read."""
    fonts = [gradio.themes.Font(name) for name in ("system-ui", "sans-serif")]
    mono = [gradio.themes.Font(name) for name in ("ui-monospace", "monospace")]
    look = gradio.themes.Default(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono)
    return look.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        color_accent="*primary_600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
