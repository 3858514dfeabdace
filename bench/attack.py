"""``python -m bench.attack``: what attackers do to the demo's honest visitors.

The demo runs as a process of its own with the workspace's model, and visitors ask it one clip after the other, each
from an address of its own on the loopback (Linux): first alone, then beside attackers who send endless JSON, break
uploads off, leave them half sent, send a thousand files at once, fill the disk, and ask for sounds of few bytes that
would last for hours. Every honest text must be the one that the model gives without the demo.
"""

import http.client
import itertools
import json
import secrets
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click
import numpy as np
import soundfile

from bench.demo import MEGABYTE, MODEL, heard, running
from stages.asr.model import load_model
from stages.params import load_params

JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
PATIENCE = 300  # seconds
ENDLESS, LARGE = b"[" + b"[]," * 10_000_000 + b"[]]", bytes(100 * MEGABYTE)


@click.command()
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw/test/audio", show_default=True)
@click.option("--visitors", default=50, show_default=True)
@click.option("--attackers", default=20, show_default=True)
@click.option("--seconds", default=300.0, show_default=True, help="Alone, and again beside the attackers.")
def main(raw: Path, visitors: int, attackers: int, seconds: float) -> None:
    """Measure honest visitors' waiting, alone and beside attackers."""
    clips = sorted(raw.glob("*.wav"))[:visitors]
    model = load_model(MODEL)
    expected = {clip: heard(model, clip) for clip in clips}
    quota = load_params(Path("params.yaml")).app.quota_megabytes * MEGABYTE
    with tempfile.TemporaryDirectory() as folder, running(TMPDIR=folder) as (address, process):
        honest = [Visitor(address, f"127.0.1.{number}") for number in range(1, len(clips) + 1)]
        hostile = [Visitor(address, f"127.0.2.{number}") for number in range(1, attackers + 1)]
        attacks = [endless_json, broken_off, half_sent, thousand_files, fill_disk, few_bytes]
        for name, beside in (("alone", []), ("beside attackers", hostile)):
            stop, disk = threading.Event(), Disk(Path(folder))
            workers = [Worker(partial_ask(each, clip), stop) for each, clip in zip(honest, clips, strict=True)]
            pairs = zip(beside, itertools.cycle(attacks), strict=False)
            workers += [Worker(partial_attack(*pair), stop) for pair in pairs]
            watch = Worker(disk.look, stop)
            for worker in (*workers, watch):
                worker.start()
            time.sleep(seconds)
            stop.set()
            for worker in (*workers, watch):
                worker.join()
            asked = [(clip, *answer) for clip, worker in zip(clips, workers, strict=False) for answer in worker.answers]
            wrong = sum(text != expected[clip] for clip, text, _ in asked)
            times = [took for _, _, took in asked]
            p95 = statistics.quantiles(times, n=20)[-1]
            memory = process.memory_info().rss / MEGABYTE
            blows = sum(len(worker.answers) for worker in workers[len(clips) :])
            median = statistics.median(times)
            click.echo(
                f"{name}: {len(asked)} answers, {wrong} wrong, median {median:.2f} s, p95 {p95:.2f} s;"
                f" {memory:.0f} MB; uploads took {disk.most / MEGABYTE:.0f} MB of disk at most; {blows} attacks"
            )
            if name == "alone":
                first = p95, memory
        click.echo(
            f"p95 {p95 / first[0]:.2f} times, memory {100 * (memory / first[1] - 1):+.1f} %,"
            f" disk {disk.most / quota:.2f} of the quota"
        )


@dataclass(frozen=True)
class Visitor:
    """Somebody with an address of their own."""

    server: str
    address: str

    def connect(self) -> http.client.HTTPConnection:
        place = urlsplit(self.server)
        assert place.hostname
        return http.client.HTTPConnection(place.hostname, place.port, PATIENCE, source_address=(self.address, 0))

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        connection = self.connect()
        try:
            connection.request("POST" if body is not None else "GET", path, body, {"Content-Type": kind})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def upload(self, *files: tuple[str, bytes]) -> tuple[int, bytes]:
        return self.ask(UPLOAD, form(*files), "multipart/form-data; boundary=x")

    def transcribe(self, name: str, content: bytes) -> str:
        """The text of a sound; "" where it is refused."""
        status, answer = self.upload((name, content))
        if status != 200:
            return f"status {status}"
        session = secrets.token_hex(6)
        file = {"path": json.loads(answer)[0], "meta": {"_type": "gradio.FileData"}}
        endpoints = json.loads(self.ask("/config")[1])["dependencies"]
        (number,) = (each["id"] for each in endpoints if each["api_name"] == "transcribe")
        data = {"data": [file, MODEL.name], "fn_index": number, "session_hash": session}
        self.ask(JOIN, json.dumps(data).encode())
        _, stream = self.ask(f"/gradio_api/queue/data?session_hash={session}")
        messages = [json.loads(line.removeprefix("data: ")) for line in stream.decode().split("\n\n") if line.strip()]
        done = next(message for message in messages if message["msg"] == "process_completed")
        return str(done["output"]["data"][0]["text"]) if done["success"] else "failed"

    def begin(self, path: str, head: str, body: bytes) -> socket.socket:
        """A request that is not ended."""
        place = urlsplit(self.server)
        assert place.hostname and place.port
        connection = socket.create_connection((place.hostname, place.port), PATIENCE, source_address=(self.address, 0))
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\n{head}\r\n\r\n".encode() + body)
        return connection


def form(*files: tuple[str, bytes]) -> bytes:
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
    return b"".join(head.format(name).encode() + content + b"\r\n" for name, content in files) + b"--x--\r\n"


@dataclass
class Disk:
    """The most that uploads took."""

    folder: Path
    most: int = 0

    def look(self) -> None:
        with suppress(OSError):
            self.most = max(self.most, sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()))
        time.sleep(1)


class Worker(threading.Thread):
    """Does a thing over and over; answers: what it gave, and the seconds that it took."""

    def __init__(self, work: Callable[[], object], stop: threading.Event):
        super().__init__(daemon=True)
        self.work, self.over = work, stop
        self.answers: list[tuple[object, float]] = []

    def run(self) -> None:
        while not self.over.is_set():
            begun = time.monotonic()
            self.answers.append((self.work(), time.monotonic() - begun))


def partial_ask(visitor: Visitor, clip: Path) -> Callable[[], str]:
    content = clip.read_bytes()
    return lambda: visitor.transcribe(clip.name, content)


def partial_attack(visitor: Visitor, attack: Callable[[Visitor], None]) -> Callable[[], None]:
    def work() -> None:
        with suppress(OSError, http.client.HTTPException, ValueError, StopIteration):  # as it is refused
            attack(visitor)
        time.sleep(0.2)  # else the attackers' own work is what honest visitors wait for

    return work


def endless_json(visitor: Visitor) -> None:
    visitor.ask(JOIN, ENDLESS)


def broken_off(visitor: Visitor) -> None:
    body = form(("a.wav", bytes(20 * MEGABYTE)))
    visitor.begin(UPLOAD, upload_head(len(body)), body[: len(body) // 2]).close()


def half_sent(visitor: Visitor) -> None:
    body = form(("a.wav", bytes(MEGABYTE)))
    connections = [visitor.begin(UPLOAD, upload_head(len(body)), body[:100_000]) for _ in range(25)]
    time.sleep(5)
    for connection in connections:
        connection.close()


def thousand_files(visitor: Visitor) -> None:
    visitor.upload(*((f"{number}.wav", b"RIFF") for number in range(1000)))


def fill_disk(visitor: Visitor) -> None:
    visitor.upload(("a.wav", secrets.token_bytes(16) + LARGE))  # another each time, for gradio keeps equal ones once


def few_bytes(visitor: Visitor) -> None:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        soundfile.write(file.name, np.zeros(7000), 1)
        visitor.transcribe("slow.wav", Path(file.name).read_bytes())


def upload_head(length: int) -> str:
    return f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}"


if __name__ == "__main__":
    main()
