"""What the demo's server lets in, by doing to it what an attacker would: on the loopback, with raw requests."""

import http.client
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import soundfile
from gradio.utils import get_upload_folder
from gradio_client import handle_file
from gradio_client.exceptions import AppError

from app import guard
from app.guard import MAX_BODY, MAX_DEPTH, PARTIAL_SECONDS, UploadFolder, Visitors, bracket_depth
from app.models import Models
from app.turns import AT_ONCE, MAX_PAGES, WAITING_OF_ONE, Orders, QueueFullError, Turns
from stages.params import App, load_params
from tests.support.demo import PATIENCE, Demo, babbling_models, connect, serve, until
from tests.support.material import ROOT, speech

JOIN = "/gradio_api/queue/join"
UPLOAD = "/gradio_api/upload"
ELSEWHERE = "127.0.0.2"  # another visitor: all of 127.0.0.0/8 is this computer on Linux


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny) -> Models:
    return babbling_models(tiny, tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, models) -> Iterator[Demo]:
    with serve(models, tmp_path_factory.mktemp("demo"), max_megabytes=1, quota_megabytes=4) as demo:
        yield demo


@pytest.fixture(autouse=True)
def emptied():
    """Each test has the whole quota."""
    yield
    for path in Path(get_upload_folder()).rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.fixture
def settings() -> App:
    return load_params(ROOT / "params.yaml").app


def ask(demo: Demo, path: str, body: bytes = b"", client: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    """The status and text of a request, a POST where it has a body; headers with _ for -."""
    place = urlsplit(demo.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, PATIENCE, source_address=(client, 0))
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request("POST" if body else "GET", path, body or None, {"Content-Type": "application/json"} | named)
    reply = connection.getresponse()
    return reply.status, reply.read().decode(errors="replace")


def event(demo: Demo, name: str, *data: object) -> bytes:
    """What joins the queue for an endpoint."""
    endpoints = json.loads(ask(demo, "/config")[1])["dependencies"]
    (number,) = (each["id"] for each in endpoints if each["api_name"] == name)
    return json.dumps({"data": data, "fn_index": number, "session_hash": secrets.token_hex(6)}).encode()


def form(*contents: bytes, name: str = "a.wav") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return b"".join(head + content + b"\r\n" for content in contents) + b"--x--\r\n"


def upload(demo: Demo, *contents: bytes, client: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    kind = {"Content_Type": "multipart/form-data; boundary=x"}
    return ask(demo, UPLOAD, form(*contents), client, **kind, **headers)


def open_connection(demo: Demo, client: str = "127.0.0.1") -> socket.socket:
    place = urlsplit(demo.url)
    return socket.create_connection((place.hostname, place.port), PATIENCE, source_address=(client, 0))


def send_part(demo: Demo, head: str, body: bytes, client: str = "127.0.0.1") -> socket.socket:
    """Begin a request, and leave it there."""
    place, connection = urlsplit(demo.url), open_connection(demo, client)
    connection.sendall(f"{head}\r\nHost: {place.netloc}\r\n\r\n".encode() + body)
    return connection


# Whose page


def test_only_the_page_itself_may_use_the_server(demo):
    place = urlsplit(demo.url)
    own = {"Host": place.netloc, "Origin": demo.url.rstrip("/")}
    body = event(demo, "models")
    assert ask(demo, JOIN, body, **own)[0] == 200
    assert ask(demo, JOIN, body, Host=f"localhost:{place.port}", Origin=f"http://localhost:{place.port}")[0] == 200
    assert ask(demo, JOIN, body)[0] == 200  # a program
    for foreign in (
        {"Host": f"evil.example:{place.port}"},
        {"Host": f"127.0.0.1.evil.example:{place.port}"},
        {"Host": f"evil.example:{place.port}", "Origin": f"http://evil.example:{place.port}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{place.port}"},  # another page of this computer, under the address's name
        {"Origin": f"http://127.0.0.1:{place.port + 1}"},
        {"Origin": "http://[bad"},
        {"Host": "[bad"},
    ):
        headers = own | foreign
        for status, text in (
            ask(demo, JOIN, body, **headers),
            upload(demo, b"RIFF", **headers),
            ask(demo, "/config", **headers),
        ):
            assert status == 403 and len(text) < 200, headers


def test_forwarded_headers_count_from_a_named_proxy_alone(demo, settings):
    root = json.loads(ask(demo, "/config", X_Forwarded_Host="evil.example", X_Forwarded_Proto="https")[1])["root"]
    assert "evil" not in root
    headers = [(b"host", b"127.0.0.1:7860"), (b"x-forwarded-host", b"viska.example"), (b"x-forwarded-for", b"9.9.9.9")]
    scope = {"type": "http", "client": ("10.1.2.3", 5), "headers": headers}
    behind = settings.model_copy(update={"proxies": ["10.0.0.0/8"], "hosts": ["Viska.example"]})
    trusting, other = Visitors.of_server("127.0.0.1", False, behind), Visitors.of_server("127.0.0.1", False, settings)
    assert trusting.seen(scope)["client"][0] == "9.9.9.9"
    trusting.check(trusting.seen(scope))
    assert other.seen(scope)["client"][0] == "10.1.2.3"
    assert [name for name, _ in other.seen(scope)["headers"]] == [b"host"]
    forged = {**scope, "headers": [headers[0], (b"x-forwarded-host", b"evil.example")]}
    with pytest.raises(guard.RefusedError, match=r"the name 'evil\.example': see app\.hosts"):
        trusting.check(trusting.seen(forged))


@pytest.mark.parametrize(
    ("lines", "visitor"),
    [
        (["127.0.0.1, 9.9.9.9"], "9.9.9.9"),
        (["127.0.0.1", "9.9.9.9"], "9.9.9.9"),  # the visitor's own line, and the proxy's
        (["8.8.8.8", "9.9.9.9, 10.5.5.5"], "9.9.9.9"),
        (["9.9.9.9:51234"], "9.9.9.9"),
        (["9.9.9.9:51234, 10.5.5.5:443"], "9.9.9.9"),
        (["[2001:db8::1]:51234"], "2001:db8::1"),
        (["2001:db8::1"], "2001:db8::1"),
        ([""], "10.1.2.3"),
        ([], "10.1.2.3"),
    ],
)
def test_a_visitor_behind_a_proxy_is_whom_the_proxy_names(settings, lines, visitor):
    visitors = Visitors.of_server("127.0.0.1", False, settings.model_copy(update={"proxies": ["10.0.0.0/8"]}))
    headers = [(b"x-forwarded-for", line.encode()) for line in lines]
    assert visitors.seen({"type": "http", "client": ("10.1.2.3", 5), "headers": headers})["client"][0] == visitor


@pytest.mark.parametrize(
    ("host", "name", "allowed"),
    [
        ("127.0.0.1", "localhost:7860", True),
        ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "192.168.1.5:7860", False),
        ("0.0.0.0", "192.168.1.5:7860", True),  # no name that somebody could have lead here
        ("0.0.0.0", "[fe80::1]:7860", True),
        ("0.0.0.0", f"{socket.gethostname()}:7860", True),
        ("0.0.0.0", "evil.example", False),
        ("viska.lan", "VISKA.lan", True),
        ("127.0.0.1", "", False),
    ],
)
def test_names_of_a_server(settings, host, name, allowed):
    visitors = Visitors.of_server(host, False, settings)
    scope = {"type": "http", "client": ("192.168.1.9", 5), "headers": [(b"host", name.encode())]}
    try:
        visitors.check(visitors.seen(scope))
    except guard.RefusedError:
        assert not allowed
    else:
        assert allowed


def test_a_space_is_its_own_page_in_a_frame_of_the_hub(settings, monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "you-viska.hf.space")
    visitors = Visitors.of_server("0.0.0.0", False, settings)
    assert visitors.frames == "'self' https://huggingface.co"
    scope = {"type": "http", "client": ("10.0.0.1", 5)}
    for host in (b"you-viska.hf.space", b"10.16.2.3:7860"):
        headers = [
            (b"host", host),
            (b"origin", b"https://you-viska.hf.space"),
            (b"x-forwarded-for", b"9.9.9.9, 10.1.1.1"),
        ]
        seen = visitors.seen({**scope, "headers": headers})
        visitors.check(seen)
        assert seen["client"][0] == "9.9.9.9"
        forged = [*headers[:2], (b"x-forwarded-for", b"127.0.0.1, 9.9.9.9, 10.1.1.1")]
        assert visitors.seen({**scope, "headers": forged})["client"][0] == "9.9.9.9"
        with pytest.raises(guard.RefusedError, match=r"Another page .* if 'evil\.example' is this page's own name"):
            visitors.check({**scope, "headers": [(b"host", host), (b"origin", b"https://evil.example")]})


def test_no_other_page_may_frame_this_one(demo):
    place = urlsplit(demo.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, PATIENCE)
    connection.request("GET", "/")
    assert "frame-ancestors 'self'" in connection.getresponse().headers["content-security-policy"]


# How much


@pytest.mark.parametrize("head", ["Content-Length: 30000000", "Transfer-Encoding: chunked"])
def test_a_body_of_megabytes_is_not_read(demo, head):
    piece = b"[]," * (MAX_BODY // 3 + 100)
    chunked = "chunked" in head
    body = (f"{len(piece):x}\r\n".encode() + piece + b"\r\n") if chunked else piece
    with send_part(demo, f"POST {JOIN} HTTP/1.1\r\nContent-Type: application/json\r\n{head}", body) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")  # though the rest was never sent
        assert ask(demo, "/config")[0] == 200  # and nobody waits for it


def test_deep_values_are_refused(demo):
    for deep in ("[" * (MAX_DEPTH + 1), '{"a":' * 5000):
        assert ask(demo, JOIN, deep.encode()) == (400, "The request's values are nested too deeply.")
    assert [bracket_depth(body) for body in (b"", b"[]", b"][", b'{"a": [1, {}]}', b"[][][]")] == [0, 1, 0, 3, 1]


def test_what_no_page_sends_gets_a_sentence_and_no_traceback(demo, caplog, capfd):
    odd: list[object] = [None, 5, "x", [], {}, {"path": 5}, True, [[1]], {"text": 1, "path": "/etc/passwd"}]
    endpoints = json.loads(ask(demo, "/config")[1])["dependencies"]
    for number, value in enumerate(odd):
        for each in endpoints[number % 3 :: 3]:
            hashed = secrets.token_hex(6)
            data = [value] * len(each["inputs"])
            body = json.dumps({"data": data, "fn_index": each["id"], "session_hash": hashed}).encode()
            assert ask(demo, JOIN, body)[0] == 200
            ask(demo, f"/gradio_api/queue/data?session_hash={hashed}")
    unknown = json.dumps({"data": [], "fn_index": 9999, "session_hash": "a"}).encode()
    assert ask(demo, JOIN, unknown) == (400, "The request is not as this page sends it.")
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]


# Uploads


def partial_files() -> list[Path]:
    return [path for path in Path(get_upload_folder()).iterdir() if path.is_file()]


def test_an_upload_that_breaks_off_is_deleted_and_told_nobody(demo, caplog, capfd):
    body = form(bytes(200_000))
    head = f"POST {UPLOAD} HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}"
    send_part(demo, head, body[:150_000]).close()
    folder = UploadFolder(Path(get_upload_folder()), 10**9, 3600)
    until(lambda: partial_files() != [] and folder.used() >= 60_000)
    (left,) = partial_files()
    folder.sweep()
    assert partial_files() == [left]  # it may still come
    long_ago = time.time() - PARTIAL_SECONDS - 1

    def swept() -> bool:
        os.utime(left, (long_ago, long_ago))
        folder.sweep()
        return not left.exists()

    until(swept)  # what had come before it broke off may still be written
    assert partial_files() == [] and folder.used() == 0
    assert upload(demo, b"RIFF")[0] == 200
    assert "Traceback" not in capfd.readouterr().err and not [each for each in caplog.records if each.exc_info]


def test_old_files_go_and_their_folders(tmp_path):
    old, new = tmp_path / "a/old.wav", tmp_path / "b/new.wav"
    for path in (old, new):
        path.parent.mkdir()
        path.write_bytes(b"x" * 10)
    folder = UploadFolder(tmp_path, 100, 3600)
    folder.owned["9.9.9.9"] = {old}
    assert folder.used() == 20
    long_ago = time.time() - 3601
    for path in (old, old.parent):
        os.utime(path, (long_ago, long_ago))
    folder.sweep()
    os.utime(old.parent, (long_ago, long_ago))
    folder.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and new.exists()
    assert not folder.owned


def test_an_upload_that_comes_while_old_files_are_swept_is_counted(tmp_path):
    folder = UploadFolder(tmp_path, 100, 3600)
    new, threads = tmp_path / "new.wav", []
    new.touch()

    class Uploading(type(tmp_path)):
        """A file; while one looks whether it is still there, another comes."""

        def exists(self) -> bool:
            threads.append(threading.Thread(target=folder.own, args=("9.9.9.9", {new})))
            threads[-1].start()
            threads[-1].join(0.1)  # which waits until all have been looked at
            return False

    folder.own("9.9.9.9", {Uploading(tmp_path / "a.wav"), Uploading(tmp_path / "b.wav")})
    folder.sweep()
    for thread in threads:
        thread.join()
    assert folder.owned == {"9.9.9.9": {new}}


def test_a_folder_that_goes_while_files_are_counted_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "here").write_bytes(b"x" * 10)
    (tmp_path / "gone").mkdir()
    folder, scan = UploadFolder(tmp_path, 100, 3600), os.scandir

    def scandir(path):
        if Path(path).name == "gone":
            Path(path).rmdir()
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert folder.used() == 10


def test_all_uploads_together_are_bounded(demo):
    answers = [upload(demo, bytes([number]) * 900_000)[0] for number in range(6)]
    assert answers == [200, 200, 200, 200, 507, 507]
    assert "holds as many files as it may" in upload(demo, bytes(900_000))[1]
    for path in Path(get_upload_folder()).rglob("a.wav"):
        path.unlink()
    assert upload(demo, bytes(900_000))[0] == 200  # it mends itself


def test_a_visitor_holds_no_more_than_a_quarter(demo):
    assert [upload(demo, bytes([number]) * 600_000, client=ELSEWHERE)[0] for number in range(3)] == [200, 429, 429]
    assert upload(demo, bytes(600_000))[0] == 200


def test_a_visitor_has_no_more_files_than_can_be_counted(demo, monkeypatch):
    monkeypatch.setattr(guard, "FILES_OF_ONE", 2)
    client = "127.0.0.20"  # who has none yet
    same = [upload(demo, b"RIFF", client=client)[0] for _ in range(3)]  # which is one file
    others = [upload(demo, bytes([number]), client=client)[0] for number in range(2)]
    assert same + others == [200, 200, 200, 200, 429]


def test_many_visitors_together_leave_room_for_the_next(demo):
    large = [upload(demo, bytes([number]) * 600_000, client=f"127.0.0.{number}")[0] for number in range(2, 12)]
    assert large == [200, 200, 200, *[507] * 7]
    assert upload(demo, bytes(200_000), client="127.0.0.12")[0] == 200


def test_a_full_disk_is_a_sentence_and_mends_itself(demo, monkeypatch):
    monkeypatch.setattr(guard, "SPARE_BYTES", 10**18)
    assert upload(demo, b"RIFF") == (507, "The server's disk is full: try again in some minutes.")
    monkeypatch.undo()
    assert upload(demo, b"RIFF")[0] == 200


def test_an_upload_has_few_files_and_says_how_long_it_is(demo):
    status, text = upload(demo, *[b"x"] * 1000)
    assert status == 413 and "send them one by one" in text
    assert upload(demo, bytes(1_200_000))[0] == 413
    kind = "Content-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked"
    with send_part(demo, f"POST {UPLOAD} HTTP/1.1\r\n{kind}", b"") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 411")
    assert list(Path(get_upload_folder()).rglob("*.wav")) == [] and partial_files() == []


def test_a_sound_may_hold_what_separates_files(demo):
    assert upload(demo, b"x--x--x" * 1000)[0] == 200


def test_uploads_left_half_sent_end_and_hold_up_nobody(demo, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.5)
    body = form(bytes(1000))
    head = f"POST {UPLOAD} HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}"
    waiting = [send_part(demo, head, body[:500]) for _ in range(20)]
    assert upload(demo, b"RIFF", client=ELSEWHERE)[0] == 200
    for connection in waiting:
        with connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    with send_part(demo, f"POST {JOIN} HTTP/1.1\r\nContent-Length: 50", b"{") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_of_one_visitors_uploads_few_wait_and_none_for_whoever_went_away(demo, monkeypatch):
    monkeypatch.setattr(guard, "WAITING_UPLOADS", 3)
    body = form(bytes(1000))
    head = f"POST {UPLOAD} HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}"
    waiting = [send_part(demo, head, body[:500], ELSEWHERE) for _ in range(guard.UPLOADS_OF_ONE + 3)]
    until(lambda: upload(demo, b"RIFF", client=ELSEWHERE)[0] == 429)
    assert "many files at once" in upload(demo, b"RIFF", client=ELSEWHERE)[1]
    assert upload(demo, b"RIFF", client="127.0.0.3")[0] == 200
    for connection in waiting:
        connection.close()
    until(lambda: upload(demo, b"RIFF", client=ELSEWHERE)[0] == 200)


# Requests that never begin


def drip(connection: socket.socket, head: bytes) -> None:
    """Send a head's begin, and then a header now and then, until the server has enough of it."""
    connection.settimeout(0.05)
    try:
        connection.sendall(head)
        while True:
            try:
                assert connection.recv(1) == b""
                return
            except TimeoutError:
                connection.sendall(b"X-Slow: 1\r\n")
    except ConnectionError:
        return


def test_a_head_that_drips_in_ends(demo, monkeypatch):
    begin = f"GET /robots.txt HTTP/1.1\r\nHost: {urlsplit(demo.url).netloc}\r\n".encode()
    body = event(demo, "models")
    head = f"POST {JOIN} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with send_part(demo, head, body[:5]) as running, open_connection(demo) as answered:
        answered.sendall(begin + b"\r\n")
        answer = http.client.HTTPResponse(answered)
        answer.begin()
        answer.read()
        monkeypatch.setattr(guard, "HEAD_SECONDS", 0.3)
        drip(answered, begin)
        with open_connection(demo) as silent, open_connection(demo) as slow:
            assert silent.recv(1) == b""
            drip(slow, begin)
        running.sendall(body[5:])  # longer than that after its head
        assert running.recv(4096).startswith(b"HTTP/1.1 200")


def test_of_many_connections_without_a_head_a_visitors_oldest_end(demo, monkeypatch):
    monkeypatch.setattr(guard, "HEADLESS_OF_ONE", 3)
    monkeypatch.setattr(guard, "HEADLESS_SECONDS", 0.1)
    waiting = [open_connection(demo, ELSEWHERE) for _ in range(5)]
    assert [connection.recv(1) for connection in waiting[:2]] == [b"", b""]
    assert ask(demo, "/config", client=ELSEWHERE)[0] == ask(demo, "/config")[0] == 200
    for connection in waiting[2:]:
        connection.sendall(f"GET /config HTTP/1.1\r\nHost: {urlsplit(demo.url).netloc}\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    for connection in waiting:
        connection.close()


def test_heads_that_come_while_the_server_is_busy_are_read(demo, monkeypatch):
    monkeypatch.setattr(guard, "HEADLESS_OF_ONE", 3)
    busy, free, host_name = threading.Event(), threading.Event(), guard.host_name

    def slow(host: str) -> str:
        busy.set()
        free.wait(PATIENCE)
        return host_name(host)

    monkeypatch.setattr(guard, "host_name", slow)
    connections = []
    for number in range(12):
        connections.append(open_connection(demo, ELSEWHERE))
        connections[-1].sendall(f"GET /robots.txt HTTP/1.1\r\nHost: {urlsplit(demo.url).netloc}\r\n\r\n".encode())
        assert number or busy.wait(PATIENCE)
    free.set()
    for connection in connections:
        with connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")


# Turns


def test_a_file_of_few_bytes_and_hours_is_refused(demo, tmp_path):
    soundfile.write(tmp_path / "slow.wav", speech(1), 1)
    with pytest.raises(AppError, match=r"slow\.wav is not a readable .* it has 1 samples a second"):
        connect(demo.url).predict(handle_file(tmp_path / "slow.wav"), api_name="/transcribe")


def test_one_recording_of_a_visitor_at_a_time_and_each_in_turn():
    turns = Turns(max_waiting=WAITING_OF_ONE + 1)
    greedy = [turns.join("9.9.9.9") for _ in range(2)]
    other = turns.join("8.8.8.8")
    assert [turns.ahead(turn) for turn in (*greedy, other)] == [0, 1, 0]
    third = turns.join("7.7.7.7")
    assert turns.ahead(third) == 2 and AT_ONCE == 2
    turns.leave(other)
    assert [turns.ahead(turn) for turn in (greedy[1], third)] == [1, 0]
    turns.leave(greedy[0])
    assert turns.ahead(greedy[1]) == 0
    assert turns.seconds(2) > 0
    for turn in (greedy[1], third):
        turns.leave(turn)
    assert not turns.queue


def test_the_queue_is_bounded_as_a_whole_and_by_visitor():
    turns = Turns(max_waiting=WAITING_OF_ONE + 1)
    turns.ahead(turns.join("9.9.9.9"))
    for _ in range(WAITING_OF_ONE):
        turns.join("9.9.9.9")
    with pytest.raises(QueueFullError):
        turns.join("9.9.9.9")
    turns.join("8.8.8.8")
    with pytest.raises(QueueFullError, match="The queue is full"):
        turns.join("7.7.7.7")


def test_turns_taken_by_many_threads_run_two_at_once():
    turns, running, most = Turns(64), [], []

    def work(number: int) -> None:
        turn = turns.join(f"9.9.9.{number % 5}")
        until(lambda: turns.ahead(turn) == 0)
        running.append(turn.client)
        most.append((len(running), len(set(running))))
        running.remove(turn.client)
        turns.leave(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 20 and all(count == len_set <= AT_ONCE for count, len_set in most)


def test_a_page_has_one_order_which_ends_with_stop_or_with_the_next():
    orders = Orders()
    assert orders.take("a") is None
    orders.place("a")
    orders.place("b")
    first = orders.take("a")
    assert orders.take("a") is None, "a double click is one order"
    orders.stop("a")
    orders.stop("unknown")
    assert first.ended and orders.is_latest("a", first) and not orders.take("b").ended
    orders.place("a")
    orders.stop("a")  # before it is taken
    second = orders.take("a")
    assert second.ended and not orders.is_latest("a", first)
    orders.place("a")
    assert not orders.take("a").ended


def test_orders_of_forged_pages_are_bounded():
    orders = Orders()
    for number in range(2 * MAX_PAGES):
        orders.place(str(number))
    assert len(orders.latest) == MAX_PAGES and orders.take(str(2 * MAX_PAGES - 1))


def test_what_is_logged_of_a_visitor_is_one_line(demo, caplog):
    with caplog.at_level(logging.WARNING):
        ask(demo, JOIN, json.dumps({"data": [], "fn_index": 9999, "session_hash": "a"}).encode())
    assert all("\n" not in record.getMessage() for record in caplog.records)
