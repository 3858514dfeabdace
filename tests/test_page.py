"""The demo through ``gradio_client`` and plain requests, on its real server."""

import ast
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from app import corpus, guard, live, page, server, texts, video
from app import models as models_module
from app.main import find_examples
from app.models import Models
from app.transcriber import Transcriber
from app.turns import QueueFullError, Turns
from stages.asr import model, recording
from stages.asr.mel import SAMPLE_RATE
from stages.asr.recording import open_recording
from stages.asr.transcription import transcribe
from stages.runtime.errors import UserError
from stages.versioning import cache, pins
from tests.support import video as videos
from tests.support.demo import PATIENCE, Demo, babbling_models, connect, free_port, long_recording, serve, spoken, until
from tests.support.material import ROOT
from tests.support.tones import record_with_ffmpeg

SENTENCE = re.compile(r"[^\n]{10,400}")  # that a person is told


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    return spoken(tmp_path_factory.mktemp("speech"), 12)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny) -> Models:
    return babbling_models(tiny, tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, models) -> Iterator[Demo]:
    with serve(models, tmp_path_factory.mktemp("demo"), max_seconds=3600, max_megabytes=200) as demo:
        yield demo


@pytest.fixture
def client(demo) -> Client:
    return connect(demo.url)


def expected(demo: Demo, path: Path, name: str = "tuned") -> str:
    """The text of a recording, without the demo."""
    with open_recording(path, 3600) as recording:
        steps = transcribe(demo.models.load(name), recording.blocks())
        return " ".join(segment.text for _, segment in steps if segment)


def ask(
    demo: Demo, path: str, body: bytes = b"", method: str = "GET", kind: str = "", language: str = "en"
) -> tuple[int, bytes]:
    """The status and body of one request, whose path goes out as it stands."""
    connection = http.client.HTTPConnection(urlsplit(demo.url).netloc, timeout=PATIENCE)
    headers = {"Accept-Language": language} | ({"Content-Type": kind} if kind else {})
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    return reply.status, reply.read()


def call(demo: Demo, file: object) -> str:
    """What the server answers to a call of /transcribe that no client has put in order."""
    join = {"data": [file, "tuned"], "fn_index": 0, "session_hash": secrets.token_hex(6)}
    endpoints = json.loads(ask(demo, "/config")[1])["dependencies"]
    (join["fn_index"],) = (each["id"] for each in endpoints if each["api_name"] == "transcribe")
    status, body = ask(demo, "/gradio_api/queue/join", json.dumps(join).encode(), "POST", "application/json")
    assert status == 200, body
    return ask(demo, f"/gradio_api/queue/data?session_hash={join['session_hash']}")[1].decode()


# For programs


def test_transcribe_gives_text_segments_and_the_model(demo, client, clips):
    heard = client.predict(handle_file(clips[0]), "pretrained", api_name="/transcribe")
    assert heard["text"] == expected(demo, clips[0], "pretrained") != expected(demo, clips[0])
    assert heard["model"] == "pretrained"
    assert " ".join(segment["text"] for segment in heard["segments"]) == heard["text"]
    for segment in heard["segments"]:
        assert " ".join(word["text"] for word in segment["words"]) == segment["text"]
        within = [time for word in segment["words"] for time in (word["start"], word["end"])]
        assert within == sorted(within) and segment["start"] <= within[0] < within[-1] <= segment["end"]
        assert all(0 <= word["probability"] <= 1 for word in segment["words"])
    ends = [time for segment in heard["segments"] for time in (segment["start"], segment["end"])]
    assert ends == sorted(ends) and 0 <= ends[0] < ends[-1] <= soundfile.info(clips[0]).duration + 0.01


def test_models_are_listed_with_what_was_measured(client):
    tuned, pretrained = client.predict(api_name="/models")
    assert tuned["name"] == "tuned" and (tuned["wer"], tuned["wer_low"], tuned["wer_high"]) == (12.3, 11.0, 14.5)
    assert tuned["data"] == "synthetic, 3,000 clips"
    assert pretrained["name"] == "pretrained" and pretrained["wer"] is None


def test_nothing_else_is_offered_to_programs(client):
    assert set(client.view_api(print_info=False, return_format="dict")["named_endpoints"]) == {"/transcribe", "/models"}


def test_readme_example_runs(demo, clips, tmp_path):
    (code,) = re.findall(r"```python\n(from gradio_client .*?)```", (ROOT / "app/README.md").read_text(), re.DOTALL)
    code = code.replace("http://127.0.0.1:7860", demo.url).replace("speech.mp3", str(clips[1]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert expected(demo, clips[1]) in done.stdout


def test_many_at_once_get_each_their_own_text(demo, clips):
    said = [expected(demo, clip) for clip in clips]
    assert len(set(said)) == len(said)

    def one(clip: Path) -> str:
        return connect(demo.url).predict(handle_file(clip), api_name="/transcribe")["text"]

    with ThreadPoolExecutor(len(clips)) as pool:
        assert list(pool.map(one, clips)) == said


def test_silence_gives_no_text(client, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(3 * SAMPLE_RATE), SAMPLE_RATE)
    heard = client.predict(handle_file(tmp_path / "silence.wav"), api_name="/transcribe")
    assert heard["text"] == "" and heard["segments"] == []


def test_a_cancelled_job_closes_its_recording(demo, client, clips, tmp_path):
    recording = long_recording(clips, tmp_path / "hour.wav", 3000)
    job = client.submit(handle_file(recording), api_name="/transcribe")
    next(iter(job))
    opened = [file.path for file in psutil.Process().open_files() if file.path.endswith("hour.wav")]
    assert opened
    job.cancel()
    until(lambda: opened[0] not in [file.path for file in psutil.Process().open_files()])


@pytest.mark.parametrize(
    ("held", "counted", "most"),
    [("decoder.layer_norm", "decoder.layer_norm", 1), ("encoder.conv1", "encoder.layers.0", 0)],
)
def test_whoever_stops_waits_for_nothing_and_the_window_ends_at_once(models, demo, clips, held, counted, most):
    """A part of the model is held until the stop has returned: no token and no layer of the encoder comes after it."""
    reached, stopped, steps = threading.Event(), threading.Event(), []

    def hold(*_: object) -> None:
        reached.set()
        stopped.wait(PATIENCE)

    transcriber = Transcriber(models, demo.settings, video.fetch_audio, Turns(1))
    whisper = models.load("tuned").whisper.model
    hooks = [whisper.get_submodule(counted).register_forward_hook(lambda *_: steps.append(1))]
    hooks.append(whisper.get_submodule(held).register_forward_hook(hold))
    try:
        going = transcriber.transcribe(["tuned"], clips[0])
        while not reached.is_set():
            next(going)
        going.close()
        assert transcriber.turns.queue, "another would begin beside what still runs"
        stopped.set()
        until(lambda: not transcriber.turns.queue)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(steps) == most
    assert str(clips[0]) not in [file.path for file in psutil.Process().open_files()]


def test_a_stopped_download_holds_up_nobody_and_there_are_few(models, demo, clips):
    """It ends when another host answers; meanwhile its visitor's next recording is transcribed."""
    answered = threading.Event()

    def fetch(*_: object) -> Path:
        answered.wait(PATIENCE)
        raise UserError("too late")

    visitor, transcriber = "9.9.9.9", Transcriber(models, demo.settings, fetch, Turns(2))

    def stop_a_download() -> None:
        going = transcriber.transcribe(["tuned"], "address", visitor)
        while next(going).step != "downloading":
            pass
        going.close()

    stop_a_download()
    *_, heard = transcriber.transcribe(["tuned"], clips[0], visitor)
    assert heard.segments[0]
    stop_a_download()
    with pytest.raises(QueueFullError):
        stop_a_download()
    answered.set()
    until(lambda: not transcriber.turns.queue)


# Bounds


def test_longer_than_allowed_is_refused(models, clips, tmp_path):
    recording = long_recording(clips, tmp_path / "long.wav", 20)
    with serve(models, tmp_path, max_seconds=10) as demo, pytest.raises(AppError, match=r"long\.wav lasts .* cut it"):
        connect(demo.url).predict(handle_file(recording), api_name="/transcribe")


def test_overtime_ends_with_a_sentence(models, clips, tmp_path):
    with serve(models, tmp_path, timeout_seconds=0) as demo, pytest.raises(AppError, match="cut the recording"):
        connect(demo.url).predict(handle_file(clips[0]), api_name="/transcribe")


def test_larger_than_allowed_is_not_taken(models, tmp_path):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    with serve(models, tmp_path, max_megabytes=1) as demo:
        for size, status in ((900_000, 200), (1_100_000, 413)):
            body = head + bytes(size) + b"\r\n--x--\r\n"
            kind = "multipart/form-data; boundary=x"
            assert ask(demo, "/gradio_api/upload", body, "POST", kind)[0] == status
        told = ask(demo, "/gradio_api/upload", body, "POST", kind, language="sv-SE")[1].decode()
        assert told == "En fil får ha 1 MB: skicka en kortare, eller som mp3."


def test_a_full_queue_turns_people_away(models, clips, tmp_path):
    recording = long_recording(clips, tmp_path / "hour.wav", 3000)
    with serve(models, tmp_path, max_seconds=3600, max_megabytes=200, queue=1) as demo:
        clients = [connect(demo.url) for _ in range(3)]
        jobs = [client.submit(handle_file(recording), api_name="/transcribe") for client in clients[:2]]
        for job in jobs:
            next(iter(job))
        waiting = clients[2].submit(handle_file(clips[0]), api_name="/transcribe")
        assert next(iter(waiting))["text"] == ""  # it waits
        with pytest.raises(Exception, match=r"[Qq]ueue is full"):
            connect(demo.url).predict(handle_file(clips[0]), api_name="/transcribe")
        jobs[0].cancel()
        assert waiting.result()["text"] == expected(demo, clips[0])
        jobs[1].cancel()


# What nobody may have


SECRETS = ("params.yaml", "README.md", ".git/config", ".dvc/config", "app/page.py", "models/tuned/config.json")


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "form", ["{}", "{root}/{}", "../{}", "..%2f{}", "%2e%2e/{}", "static/../{}", "file://{root}/{}"]
)
def test_no_file_of_the_project_is_served(demo, form, name):
    place = form.format(name, root=ROOT)
    for prefix in ("/gradio_api/file=", "/gradio_api/file/", "/static/", "/assets/", "/file=", "/svelte/"):
        status, body = ask(demo, prefix + place)
        assert status in (403, 404, 405), (prefix + place, status)
        assert (ROOT / "params.yaml").read_bytes()[:40] not in body


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring",
        "/gradio_api/runs",
        "/gradio_api/deep_link",
        "/gradio_api/vibe-code",
        "/gradio_api/proxy=http://x.hf.space/",
    ],
)
def test_what_the_page_does_not_need_is_closed(demo, path):
    assert ask(demo, path)[0] == 404


FILE = {"meta": {"_type": "gradio.FileData"}}


def test_the_server_fetches_no_address_for_others(demo, clips, tmp_path):
    with videos.serve(tmp_path) as site:
        site.replies["/a.wav"] = videos.Reply(clips[0].read_bytes())
        assert ask(demo, f"/gradio_api/file={site.url}/a.wav")[0] == 404
        assert "Send a file, not its address" in call(demo, {"path": f"{site.url}/a.wav", **FILE})
        for file in ({"path": f"{site.url}/a.wav"}, {"path": "a.wav", "url": f"{site.url}/a.wav", **FILE}, site.url):
            assert '"success":false' in call(demo, file)
        assert not site.asked


@pytest.mark.parametrize("meta", [{}, FILE, {"meta": 1}])
@pytest.mark.parametrize("path", ["{clip}", "../../../../../../../../{clip}", "/proc/self/environ", "", "."])
def test_a_path_that_was_not_uploaded_is_refused(demo, clips, path, meta):
    answer = call(demo, {"path": path.format(clip=clips[0]), **meta})
    assert '"success":false' in answer and "Traceback" not in answer and "segments" not in answer


# Whatever people drop


def write_hostile(folder: Path, clip: Path) -> list[Path]:
    """A hundred files that are no sound, or claim to be other than they are."""
    good = clip.read_bytes()
    compressed = {}
    for kind, codec in (("m4a", "aac"), ("webm", "libopus"), ("mp4", "aac")):
        record_with_ffmpeg(folder / f"good.{kind}", 1, codec, 48_000, 2)
        compressed[kind] = (folder / f"good.{kind}").read_bytes()
    for kind in ("flac", "ogg", "mp3"):
        soundfile.write(folder / f"good.{kind}", soundfile.read(clip)[0], SAMPLE_RATE, format=kind)
        compressed[kind] = (folder / f"good.{kind}").read_bytes()
    compressed["wav"] = good
    rng = np.random.default_rng(1)
    bomb = folder / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50_000_000))
    ten_hours = struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", 2**31, b"WAVEfmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 10 * 3600 * 16000
    )
    contents = {
        "empty": b"",
        "zeros": bytes(5000),
        "noise": rng.bytes(5000),
        "text": "Det här är ingen ljudfil.\n".encode() * 50,
        "page": b"<html><script>alert(1)</script></html>",
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "bomb": bomb.read_bytes(),
        "claim": ten_hours + good[44:],
        "elf": Path(sys.executable).resolve().read_bytes()[:20_000],
    }
    files = {f"{name}.{kind}": data for name, data in contents.items() for kind in ("wav", "mp3", "mp4", "webm", "exe")}
    for kind, data in compressed.items():
        files |= {f"cut-{share}.{kind}": data[: len(data) * share // 100] for share in (1, 10, 50, 99)}
        files[f"changed.{kind}"] = bytes(byte ^ (rng.random() < 0.01) * 255 for byte in data)
        files[f"swapped.{kind}"] = data[::-1]
    files |= {f"other-suffix.{kind}": good for kind in ("mp3", "txt", "zip", "mp4", "tar.gz")}
    files |= {"å ä ö 🎤.wav": good, "<img src=x onerror=alert(1)>.wav": b"no", "a'b\"c.wav": b"no"}
    paths = []
    for name, data in files.items():
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    return paths


def test_a_hundred_hostile_files_get_a_sentence_or_a_text(demo, client, clips, tmp_path, caplog):
    files = write_hostile(tmp_path, clips[0])
    assert len(files) >= 100

    def one(path: Path) -> str | None:
        try:  # with a client each: of calls at once through one client, gradio_client may lose one
            assert isinstance(connect(demo.url).predict(handle_file(path), api_name="/transcribe")["text"], str)
        except AppError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        told = dict(zip(files, pool.map(one, files), strict=True))
    refused = {path.name: said for path, said in told.items() if said}
    assert all(re.fullmatch(SENTENCE, said) and str(tmp_path) not in said for said in refused.values())
    assert not [record for record in caplog.records if record.exc_info], "one was not told of in its own words"
    assert {"empty.wav", "zeros.mp3", "bomb.webm", "playlist.mp4"} <= refused.keys()
    assert not {"å ä ö 🎤.wav", "other-suffix.mp3", "other-suffix.zip"} & refused.keys()
    assert client.predict(handle_file(clips[1]), api_name="/transcribe")["text"] == expected(demo, clips[1])


# The command


def test_ctrl_c_ends_the_command_with_130(models, tmp_path):
    port = free_port()
    root = models.source.root
    command = [sys.executable, "-m", "app.main", "--port", str(port), "--model", "pretrained"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "VISKA_DATA": str(tmp_path)}
    process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "pretrained" in line and f"http://127.0.0.1:{port}/" in line, process.communicate()
        assert process.stdout.readline() == "pretrained is loaded.\n"
        assert connect(f"http://127.0.0.1:{port}").predict(api_name="/models")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, said) == (130, "stopped by Ctrl-C\n")


def test_examples_are_the_splits_or_the_built_in_corpuss(settings, tmp_path):
    split, spare = tmp_path / "test", tmp_path / "spare"
    assert find_examples(split, None, spare) == []
    assert find_examples(split, settings({"download.corpus": "folder"}), spare) == []
    spoken = find_examples(split, settings(), spare)
    assert len(spoken) == 3 and all(example.path.is_relative_to(spare) for example in spoken)
    shutil.copytree(spare, split)
    assert [example.path.parent for example in find_examples(split, None, spare)] == [split / "audio"] * 3


def test_the_page_waits_for_neither_torch_nor_transformers():
    code = "import sys, app.page, app.server; print(sorted({'torch', 'transformers', 'dvc'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done


def test_a_port_that_is_taken_is_told_of(models, demo, tmp_path):
    taken = urlsplit(demo.url).port
    with (
        pytest.raises(UserError, match=f"port {taken} .* choose one with --port"),
        server.serve_page(page.build_page(models, demo.settings, None), demo.settings, "127.0.0.1", taken, share=False),
    ):
        pass


def test_a_page_that_cannot_be_reached_is_told_of(models, demo, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    blocks = page.build_page(models, demo.settings, None)
    with (
        pytest.raises(UserError, match=r"did not answer .* http_proxy"),
        server.serve_page(blocks, demo.settings, "127.0.0.1", free_port(), share=False),
    ):
        pass


# Words


def test_both_languages_say_the_same():
    english, swedish = texts.LANGUAGES.values()
    assert english.keys() == swedish.keys()
    for key, text in english.items():
        assert re.findall(r"{\w+}", text) == re.findall(r"{\w+}", swedish[key]), key


ERROR_MODULES = [corpus, guard, live, models_module, video, cache, pins, model, recording]
# What nobody meets who visits: mistakes of whoever starts the demo, or trains.
NOT_MET = {"require_versions", "check_fit"}


def error_sentences(module: ModuleType) -> Iterator[str]:
    """Every sentence that a module raises, with § for what differs."""

    def text(node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.JoinedStr(values=values):
                return "".join(map(text, values))
            case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name):
                return str(getattr(module, name, "§"))
            case ast.FormattedValue():
                return "§"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="format")):
                return getattr(module, name).replace("{}", "§")
        raise AssertionError(ast.unparse(node))

    functions = ast.walk(ast.parse(Path(module.__file__).read_text()))
    for function in (node for node in functions if isinstance(node, ast.FunctionDef) and node.name not in NOT_MET):
        for node in ast.walk(function):
            match node:
                case ast.Call(func=ast.Name(id="UserError" | "AudioError" | "RefusedError"), args=[*_, said]):
                    options = [said.body, said.orelse] if isinstance(said, ast.IfExp) else [said]
                    for option in options:
                        if not (isinstance(option, ast.Call) and isinstance(option.func, ast.Name)):
                            yield text(option)


def test_every_error_that_a_visitor_can_meet_is_said_in_swedish():
    said = [sentence for module in ERROR_MODULES for sentence in error_sentences(module)]
    said += ["the program git is missing: install it"]
    said += [recording.too_long_message("§", 10, claim) for claim in ("", "0:20, ")]
    reasons = [*video.FAILURES.values(), video.NO_AUDIO, video.NO_RUNTIME]
    said += [f"{reason}: {video.DROP_THE_FILE}" for reason in reasons] + [f"§, or {video.DROP_THE_FILE}"]
    assert len(said) > 60
    for sentence in said:
        swedish = texts.translate_error("sv", sentence)
        assert swedish != sentence == texts.translate_error("en", sentence), sentence
        assert not re.search(r"\b(the|this|and|is|was)\b", swedish, re.IGNORECASE), swedish
        assert swedish.count("§") == sentence.count("§"), swedish
    told = "a {} b.wav is not a readable audio or video file: it contains no samples; convert it to wav, mp3 or mp4"
    assert "a {} b.wav är ingen läsbar" in texts.translate_error("sv", told)
    assert "den innehåller inget ljud" in texts.translate_error("sv", told)


WANTED = [("sv-SE,sv;q=0.9,en;q=0.8", "sv"), ("en-GB,sv;q=0.1", "en"), ("de,sv;q=0.5,en;q=0.7", "en")]
WANTED += [("fi", "en"), (None, "en"), ("sv;q=x,en", "en")]


@pytest.mark.parametrize(("accepted", "language"), WANTED)
def test_the_browser_chooses_the_language(accepted, language):
    assert texts.preferred_language(accepted) == language
