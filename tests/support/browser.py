"""A real Chromium without a window, whose microphone plays a file."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextmanager
def chromium(microphone: Path) -> Iterator[Browser]:
    """The browser of this machine; fails, with the way to have one, where there is none."""
    path = shutil.which("chromium")
    assert path, "the page is tested in Chromium, which is missing: apt-get install chromium"
    flags = [*FLAGS, *MICROPHONE, f"--use-file-for-fake-audio-capture={microphone}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()
