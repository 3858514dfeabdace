"""What the demo's server answers: the page's own addresses, nothing that reaches other hosts or other folders."""

import base64
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gradio
import httpx
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.guard import KEEP_SECONDS, Guard, HeadLimit, UploadFolder, Visitors, host_name
from app.texts import GRADIO_SENTENCES, browser_texts
from app.transcriber import MEGABYTE
from stages.params import App
from stages.runtime.errors import UserError

STYLESHEET, SCRIPT = (Path(__file__).with_name(name) for name in ("style.css", "page.js"))
# Of all that gradio answers: it also fetches addresses for others, runs programs, and shows what people did.
PAGE_PATHS = {"/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json"}
API_CALLS = {
    "info",
    "app_id",
    "startup-events",
    "theme.css",
    "upload",
    "upload_progress",
    "reset",
    "cancel",
    "heartbeat",
}
API_CALLS |= {"queue", "run", "call", "login_check", "user"}
INLINE_SCRIPT = re.compile(rb"<script\b[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
MAX_SESSIONS = 100  # whose state is kept; beyond, whoever was away longest has no last transcript to correct
SPARE_THREADS = 24  # for all else that the page does
SECURITY_HEADERS = {
    # A page that asks no other host, whatever a text or a library puts into it. Scripts: the server's files, the page's
    # own as they were sent, by their hashes, and what gradio makes of an event's js.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-eval' blob:{scripts}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; form-action 'self'; "
    "base-uri 'self'; object-src 'none'; frame-ancestors {frames}",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class AddressFilter:
    """ASGI middleware: 404 for every address that the page does not need, and headers that bind the browser."""

    def __init__(self, app: ASGIApp, frames: str):
        """frames: whose pages may show this one within theirs."""
        self.app, self.frames = app, frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, body = dict[str, Any](), b""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers(b"")]
            await send(message)

        async def send_page(message: Message) -> None:
            """The same of the page, held until it is whole: the headers have its scripts' hashes."""
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = dict(message)
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                await send({**start, "headers": [*start["headers"], *self.headers(body)]})
                await send({"type": "http.response.body", "body": body})

        app = self.app if is_allowed(scope["path"]) else PlainTextResponse("There is nothing at this address.", 404)
        await app(scope, receive, send_page if scope["path"] == "/" else send_with_headers)

    def headers(self, page: bytes) -> list[tuple[bytes, bytes]]:
        """The headers of an answer, of a page with the hashes of its scripts."""
        digests = (
            base64.b64encode(hashlib.sha256(script).digest()).decode()
            for script in INLINE_SCRIPT.findall(page)
            if script
        )
        values = {"frames": self.frames, "scripts": "".join(f" 'sha256-{digest}'" for digest in digests)}
        return [(name.encode(), text.format(**values).encode()) for name, text in SECURITY_HEADERS.items()]


def is_allowed(path: str) -> bool:
    """Whether an address, percent signs resolved, is one of the page's own."""
    path = unquote(path)  # once more: gradio resolves a file's name itself
    if path in PAGE_PATHS or path.startswith(("/assets/", "/static/")):
        return True
    if not path.startswith("/gradio_api/"):
        return False
    call = path.removeprefix("/gradio_api/")
    if call.startswith("file="):
        return "://" not in call and ".." not in Path(call).parts
    return call.split("/")[0] in API_CALLS


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
def serve_page(page: gradio.Blocks, settings: App, host: str, port: int, share: bool) -> Iterator[str]:
    """The page on a port; gives its address. Raises UserError where the port is taken."""
    page.queue(max_size=None, api_open=False)
    host = host.strip("[]")  # which an IPv6 address may have, and gradio wants
    visitors = Visitors.of_server(host, share, settings)
    folder = UploadFolder(
        Path(get_upload_folder()), settings.quota_megabytes * MEGABYTE, settings.timeout_seconds + KEEP_SECONDS
    )
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # of uvicorn, which else believes them of every program on this computer
    guard = Middleware(Guard, visitors=visitors, folder=folder, max_upload=settings.max_megabytes * MEGABYTE)
    try:
        _, local_url, share_url = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            share=share,
            state_session_capacity=MAX_SESSIONS,
            max_threads=settings.queue + SPARE_THREADS,  # whoever waits holds one
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=settings.max_megabytes * MEGABYTE,
            allowed_paths=[],
            show_error=False,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            footer_links=["api", "settings"],
            i18n=gradio.I18n(**browser_texts()),
            theme=page_theme(),
            css_paths=STYLESHEET,
            js=SCRIPT.read_text(encoding="utf-8").replace("GRADIO_SENTENCES", json.dumps(GRADIO_SENTENCES)),
            app_kwargs={"middleware": [Middleware(AddressFilter, frames=visitors.frames), guard]},
        )
    except OSError as error:
        if error.errno not in (None, errno.EADDRINUSE, errno.EACCES):
            raise
        raise UserError(
            f"port {port} on {host} is not available: another program may be using it, or the address is none of this"
            " computer's; choose one with --port or --host"
        ) from None
    except (ValueError, httpx.TransportError) as error:  # gradio asks its page whether it is there, and waits 3 s
        if isinstance(error, ValueError) and "localhost is not accessible" not in str(error):
            raise
        page.close(verbose=False)
        raise UserError(
            "the page did not answer its own computer: that may be too busy, so try again; else check the variables"
            " http_proxy and no_proxy"
        ) from None
    page.server.config.http_protocol_class = HeadLimit  # of all connections from now on
    if share_url:
        visitors.names.add(host_name(urlsplit(share_url).netloc))
    try:
        with folder.swept():
            yield share_url or local_url
    finally:
        page.close(verbose=False)


def page_theme() -> gradio.themes.Base:
    """Calm, with the computer's own fonts, and white on green dark enough to be read."""
    fonts = [gradio.themes.Font(name) for name in ("system-ui", "sans-serif")]
    mono = [gradio.themes.Font(name) for name in ("ui-monospace", "monospace")]
    look = gradio.themes.Default(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono)
    return look.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        body_text_color_subdued="*neutral_500",
        color_accent="*primary_600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
