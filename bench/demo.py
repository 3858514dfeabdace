"""``python -m bench.demo``: how long people wait for the demo, and what many at once do to it.

The demo runs as a process of its own with the workspace's model. In Chromium, from the click to the text of a 5 s clip
and of an example, and to the first text of a 10 min file. For speech that comes at its own pace, how far the text is
behind, and whether it ends as the file's. Through ``gradio_client``, rounds of clients at once, each with a recording
of its own: every text must be the one that the model gives without the demo, and memory must stay.
"""

import base64
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
import psutil
import soundfile
from gradio_client import handle_file
from playwright.sync_api import Page, expect

from stages.asr.model import load_model
from stages.asr.recording import open_recording
from stages.asr.transcription import transcribe
from tests.support.browser import chromium
from tests.support.demo import connect, free_port, long_recording

MODEL = Path("models/tuned")
MEGABYTE = 1_000_000
PIECE_SECONDS = 0.25  # page.js's SECONDS


@click.command()
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw/test/audio", show_default=True)
@click.option("--clients", default=50, show_default=True)
@click.option("--rounds", default=6, show_default=True)
@click.option("--speak", default=60, show_default=True, help="Seconds of speech, at its own pace.")
@click.option("--clicks", default=10, show_default=True)
def main(raw: Path, clients: int, rounds: int, speak: int, clicks: int) -> None:
    """Measure waiting, pairing and memory."""
    clips = sorted(raw.glob("*.wav"))[:clients]
    with tempfile.TemporaryDirectory() as folder, running() as (address, process):
        click.echo(waiting(address, clips, Path(folder), clicks))
        click.echo(speaking(address, long_recording(clips, Path(folder) / "speech.wav", speak)))
        for line in crowds(address, process, clips, rounds):
            click.echo(line)


@contextmanager
def running(**environment: str) -> Iterator[tuple[str, psutil.Process]]:
    """The demo, as ``python -m app.main``, with further environment variables: its address and its process."""
    port = free_port()
    command = [sys.executable, "-m", "app.main", "--model", MODEL.name, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    try:
        if not process.stdout.readline():
            sys.exit("the demo did not start")
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def waiting(address: str, clips: list[Path], folder: Path, clicks: int) -> str:
    """From click to text, for a person: a warm 5 s clip, and the first words of 10 min."""
    short = long_recording(clips[:3], folder / "short.wav", 5)
    long = long_recording(clips, folder / "long.wav", 600)
    with chromium(microphone=short) as browser:
        page = browser.new_page(locale="en-GB")
        page.goto(address)
        times = [from_click_to(page, short, "Done") for _ in range(clicks + 1)][1:]
        examples = [from_example_to_text(page, number % 3) for number in range(clicks)]
        first = from_click_to(page, long, "of 10:00 transcribed")
    usual, worst = statistics.median(times), max(times)
    example = f"an example: {statistics.median(examples):.2f} s, at worst {max(examples):.2f}"
    return (
        f"from click to text, 5 s: {usual:.2f} s, at worst {worst:.2f}; {example}; first text of 10 min: {first:.2f} s"
    )


def from_example_to_text(page: Page, number: int) -> float:
    """Seconds from the click on an example to its text."""
    page.reload()
    expect(page.locator("#status")).to_contain_text("The text will appear here")
    button = page.locator("#examples button").nth(number)
    expect(button).to_be_visible()
    begun = time.monotonic()
    button.click()
    wait_for_text(page, "Done")
    return time.monotonic() - begun


def wait_for_text(page: Page, words: str) -> None:
    """Until there is text and the status says so much, looked at with each frame: ``expect`` looks once a second."""
    shown = (
        "words => document.querySelector('#left span') && document.querySelector('#status').innerText.includes(words)"
    )
    page.wait_for_function(shown, arg=words, timeout=60_000)


def speaking(address: str, path: Path) -> str:
    """How long after its first sample was spoken each piece is in the text; pieces are what has come, as in page.js."""
    samples, rate = soundfile.read(path, dtype="int16")
    heard, sent, lags = {"id": ""}, 0, []
    begun = time.monotonic()
    while sent < len(samples):
        time.sleep(max(sent / rate + PIECE_SECONDS - (time.monotonic() - begun), 0))
        ready = min(round((time.monotonic() - begun) * rate), len(samples))
        audio = base64.b64encode(samples[sent:ready].tobytes()).decode()
        data = [audio, rate, MODEL.name, heard["id"], ready == len(samples)]
        answer = httpx.post(f"{address}/gradio_api/run/live", json={"data": data}, timeout=60)
        (heard,) = answer.raise_for_status().json()["data"]
        lags.append(time.monotonic() - begun - sent / rate)
        sent = ready
    same = "the file's" if heard["settled"] == ask(address, path) else "NOT the file's"
    median, p95 = statistics.median(lags), sorted(lags)[int(0.95 * len(lags))]
    lag = f"{median:.2f} s behind, 95 % within {p95:.2f}, at worst {max(lags):.2f}"
    return f"{len(samples) / rate:.0f} s of speech at its own pace: {lag}; the text at the end is {same}"


def from_click_to(page: Page, recording: Path, words: str) -> float:
    """Seconds until there is text and the status says so much."""
    page.reload()
    expect(page.locator("#status")).to_contain_text("The text will appear here")
    page.get_by_role("tab", name="File", exact=True).click()
    page.locator("#upload input[type=file]").set_input_files(recording)
    expect(page.locator("#upload")).to_contain_text(recording.stem)
    begun = time.monotonic()
    page.locator("#transcribe-file").click()
    wait_for_text(page, words)
    return time.monotonic() - begun


def crowds(address: str, process: psutil.Process, clips: list[Path], rounds: int) -> Iterator[str]:
    """Rounds of clients at once, all new: what each heard, how long it took, and memory after each round."""
    model = load_model(MODEL)
    expected = [heard(model, clip) for clip in clips]
    if len(set(expected)) < len(expected) * 0.9:
        sys.exit("too many recordings say the same: nothing would be seen of a wrong pairing")
    memory = []
    for number in range(1, rounds + 1):
        begun = time.monotonic()
        with ThreadPoolExecutor(len(clips)) as pool:
            texts = list(pool.map(lambda clip: ask(address, clip), clips))
        wrong = sum(text != right for text, right in zip(texts, expected, strict=True))
        memory.append(process.memory_info().rss / MEGABYTE)
        took = time.monotonic() - begun
        yield f"round {number}: {len(clips)} at once in {took:.0f} s, {wrong} wrong texts, {memory[-1]:.0f} MB"
    yield f"memory since round 2: {100 * (memory[-1] / memory[min(1, rounds - 1)] - 1):+.1f} %"


def heard(model, clip: Path) -> str:
    """The text of a clip, without the demo."""
    with open_recording(clip, soundfile.info(clip).duration + 1) as recording:
        return " ".join(segment.text for _, segment in transcribe(model, recording.blocks()) if segment)


def ask(address: str, clip: Path) -> str:
    client = connect(address)
    try:
        return client.predict(handle_file(clip), api_name="/transcribe")["text"]
    finally:
        client.close()


if __name__ == "__main__":
    main()
