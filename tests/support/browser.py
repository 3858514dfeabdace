"""A real Chromium, or a browser built on it, without a window, whose microphone plays a file.

``python -m tests.support.browser`` says which browser the tests will drive, and fetches one where there is none; the
tests themselves only look for it. With VISKA_BROWSER=required it ends with status 1 where none can be had.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LAST_RESORT = ("microsoft-edge", "microsoft-edge-stable")
APPLICATIONS = ("Chromium", "Google Chrome", "Microsoft Edge")  # on macOS
NONE_FOUND = "no Chromium or Chrome was found"
MISSING = f"{NONE_FOUND}: run `python -m playwright install chromium`, or on Debian `apt-get install chromium`"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
OTHER_NAME = "viska.test"  # of 127.0.0.1 for the browser, which trusts only localhost without https
FLAGS += [f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
ANSWER_SECONDS = 30  # that a browser may take to tell its version
FETCH_SECONDS = 600  # that one way to fetch a browser may take


class Found(NamedTuple):
    """A browser that starts."""

    path: str
    version: str  # Chromium 140.0.7339.80 …

    def __str__(self) -> str:
        return f"{self.version} ({self.path})"


@contextmanager
def chromium(microphone: Path) -> Iterator[Browser]:
    """The browser of this machine; raises FileNotFoundError, with the way to have one, where there is none."""
    found = find_browser()
    if found is None:
        raise FileNotFoundError(MISSING)
    flags = [*FLAGS, *MICROPHONE, f"--use-file-for-fake-audio-capture={microphone}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found.path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def find_browser() -> Found | None:
    """The first candidate that answers."""
    for path in candidates():
        if version := version_of(path):
            return Found(path, version)
    return None


def candidates() -> Iterator[str]:
    """Where a browser may be, the best first.

    Under WSL those of Windows are left out: Playwright speaks to a browser over pipes, which do not lead there.
    """
    yield from filter(None, map(shutil.which, NAMES))
    for name in APPLICATIONS:
        yield f"/Applications/{name}.app/Contents/MacOS/{name}"
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path  # where its download is, or would be
    yield own
    yield from filter(None, map(shutil.which, LAST_RESORT))


def version_of(path: str) -> str | None:
    """What a browser calls itself.

    None where it does not start, such as Ubuntu's stub ``chromium-browser`` or a download whose libraries are missing,
    and of a snap, which sees another /tmp than the tests.
    """
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = answer.stdout.strip()
    return version if answer.returncode == 0 and "snap" not in version.split() else None


def ways_to_fetch() -> Iterator[list[list[str]]]:
    """Commands after each group of which a browser may be there; packages of the system only as root."""
    playwright = ["python", "-m", "playwright"]
    yield [[*playwright, "install", "chromium"]]
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        yield [["apt-get", "update"], ["apt-get", "install", "--yes", "chromium"]]
        yield [[*playwright, "install-deps", "chromium"]]  # for its download, where the package is a snap


def run(command: list[str]) -> str | None:
    """Run a command, and what it starts, for FETCH_SECONDS at most; returns its complaint, None where it worked."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": "10000"}
    program = sys.executable if command[0] == "python" else command[0]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([program, *command[1:]], env=env, text=True, start_new_session=True, **pipes)
    try:
        said, _ = process.communicate(timeout=FETCH_SECONDS)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return f"it took longer than {FETCH_SECONDS} s"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line for line in lines if line.startswith(("Error:", "E:"))] or lines[-1:]
    return None if process.returncode == 0 else next(iter(complaints), f"status {process.returncode}")


def main() -> int:
    """Say which browser the tests will drive, or fetch one; returns the command's status."""
    found = find_browser()
    for commands in [] if found else ways_to_fetch():
        for command in commands:
            print(f"{NONE_FOUND}: trying `{' '.join(command)}`", flush=True)
            if problem := run(command):
                print(f"  which failed: {problem}", flush=True)
                break
        if found := find_browser():
            break
    if found:
        print(f"the demo's page is tested in {found}", flush=True)
        return 0
    print(f"tests of the demo's page are skipped: {MISSING}", flush=True)
    return int(os.environ.get("VISKA_BROWSER") == "required")


if __name__ == "__main__":
    sys.exit(main())
