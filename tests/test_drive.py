"""The Google Drive remote, against a stand-in on the loopback that keeps Drive's rules."""

import json
import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from dvc.repo import Repo

from stages.runtime.errors import UserError
from tests.support.clones import ANNA, Clone, shaped, targets
from tests.support.drive import CLIENT, FAULTS, GRAIN, Drive, Script
from tools.drive import stores
from tools.drive.__main__ import main

SMALL = shaped(shards=4, models=1, others=1) | {"models/pretrained/empty": b""}
BOB = "bob@example.com"


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def tool(monkeypatch, capsys):
    """Call with a clone and arguments: the command in this process, quick; returns its status and what it printed."""
    monkeypatch.setattr("socket.setdefaulttimeout", lambda seconds: None)  # it would outlive the test

    def call(clone: Clone, *arguments: str) -> tuple[int, str]:
        for name, value in clone.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("httplib2.CA_CERTS", clone.env["HTTPLIB2_CA_CERTS"])  # read once, at its import
        monkeypatch.chdir(clone.folder)
        capsys.readouterr()
        status = main(list(arguments), standalone_mode=False)
        return status, capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> dict[tuple[str, ...], Path]:
    """Repositories by the names of their files, for ``make``."""
    return {}


@pytest.fixture
def make(drive, tmp_path, tmp_path_factory, templates) -> Callable[..., Clone]:
    """Call with files and a name: a repository in which DVC keeps these files, signed in as Anna."""

    def call(files: dict[str, bytes], name: str = "anna") -> Clone:
        if tuple(files) not in templates:
            templates[tuple(files)] = build(Clone(drive, tmp_path_factory.mktemp("template") / "repo"), files)
        clone = Clone(drive, tmp_path / name)
        shutil.copytree(templates[tuple(files)], clone.folder, symlinks=True)
        clone.connect().commit()
        return clone

    return call


def build(clone: Clone, files: dict[str, bytes]) -> Path:
    clone.write(files)
    clone.run("git", "init", "-q", "-b", "main")
    Repo.init(str(clone.folder)).close()
    with Repo(str(clone.folder)) as repo:
        repo.add([str(clone.folder / name) for name in targets(files)])
    return clone.folder


def copy(clone: Clone, name: str, account: str = ANNA) -> Clone:
    """What another person has after cloning and connecting: no data yet."""
    other = Clone(clone.drive, clone.folder.parent / name)
    clone.run("git", "clone", "-q", ".", str(other.folder))
    return other.connect(account)


def uploads(drive: Drive) -> int:
    return drive.counts()["start"]


# Round trips


@pytest.mark.parametrize("sender, receiver", [("tool", "dvc"), ("dvc", "tool"), ("tool", "tool")])
def test_what_one_pushes_the_other_pulls(drive, make, tmp_path, sender, receiver):
    drive.page_size = 3
    anna = make(SMALL)
    bob = copy(anna, "bob", BOB)
    drive.share(drive.items[drive.root], BOB)
    command = {"tool": ["python", "-m", "tools.drive"], "dvc": ["dvc"]}
    anna.run(*command[sender], "push")
    bob.run(*command[receiver], "pull")
    assert bob.read(SMALL) == SMALL
    before = uploads(drive)
    anna.run(*command[receiver], "push")
    assert uploads(drive) == before


def test_pipeline_pulled_runs_nothing_and_a_new_parameter_runs_train_and_evaluate(drive, tmp_path):
    anna = Clone(drive, tmp_path / "anna")
    anna.write({"dvc.yaml": PIPELINE, "params.yaml": b"train: 1\n", ".gitignore": b"/raw\n"})
    anna.run("git", "init", "-q", "-b", "main")
    anna.run("dvc", "init", "-q")
    anna.connect().run("dvc", "repro", "-q")
    anna.commit()
    anna.tool("push")
    bob = copy(anna, "bob", BOB)
    drive.share(drive.items[drive.root], BOB)
    bob.tool("pull")
    assert bob.read(["features/a", "model", "scores"]) == anna.read(["features/a", "model", "scores"])
    assert "Running stage" not in bob.run("dvc", "repro", "--pull")
    bob.write({"params.yaml": b"train: 2\n"})
    ran = re.findall(r"Running stage '(\w+)'", bob.run("dvc", "repro", "--pull"))
    assert ran == ["train", "evaluate"]


PIPELINE = b"""
stages:
  download: {cmd: mkdir raw && echo 1 > raw/a, outs: [{raw: {cache: false}}]}
  featurize: {cmd: mkdir features && cp raw/a features, deps: [raw], outs: [features]}
  train: {cmd: cat features/a params.yaml > model, deps: [features], params: [train], outs: [model]}
  evaluate: {cmd: cp model scores, deps: [model], outs: [scores]}
"""


@pytest.mark.parametrize("shape, most", [((20, 0, 0), 130), ((20, 2, 6), 260)])
def test_calls_stay_few(drive, make, tmp_path, tool, shape, most):
    files = shaped(*shape)
    anna = make(files)
    bob = copy(anna, "bob")
    for clone, command in ((anna, "push"), (bob, "pull")):
        drive.asked.clear()
        assert tool(clone, command)[0] == 0
        assert len(drive.asked) <= most
    assert bob.read(files) == files


def test_a_shared_drive_takes_a_service_account(drive, make, tmp_path, tool, key):
    anna = make(SMALL)
    top = drive.shared_drive("robot@lab.iam")
    (tmp_path / "key.json").write_text(json.dumps(drive.service_account("robot@lab.iam", key)))
    status, printed = tool(anna, "connect", f"gdrive://{top.id}/lab", "--service-account", str(tmp_path / "key.json"))
    assert status == 0 and "robot@lab.iam may write" in printed
    assert tool(anna, "push")[0] == 0
    bob = copy(anna, "bob", BOB)  # a colleague with a client of their own
    drive.share(top, BOB)
    bob.connect(BOB, f"{top.id}/lab").run("dvc", "pull")
    assert bob.read(SMALL) == SMALL


def test_gc_removes_what_is_not_used_to_the_trash(drive, make, tmp_path):
    anna = make(SMALL)
    anna.tool("push")
    old = len(drive.files())
    anna.write({"data/tables/0.tsv": b"new"})
    anna.run("dvc", "add", "-q", "data/tables/0.tsv")
    anna.tool("push")
    anna.run("dvc", "gc", "-w", "-c", "-f")
    assert (len(drive.files()), len(drive.files(trashed=True))) == (old, 1)
    assert "in sync" in anna.run("dvc", "status", "-c")


def test_a_folder_is_the_simplest_remote(drive, make, tmp_path, tool):
    anna = make(SMALL)
    bob = copy(anna, "bob")
    for clone in (anna, bob):
        clone.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    assert "features" in tool(anna, "check")[1]
    assert tool(anna, "push")[0] == 0
    assert "up to date" in anna.run("dvc", "push")
    assert tool(bob, "pull")[0] == 0
    assert bob.read(SMALL) == SMALL
    assert drive.asked == []


# Faults


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_each_way_ends_well(drive, make, tmp_path, tool, fault):
    anna = make(SMALL)
    bob = copy(anna, "bob")
    anna.env["DRIVE_TIMEOUT"] = bob.env["DRIVE_TIMEOUT"] = "0.3"
    drive.script = Script([fault])
    status, printed = tool(anna, "push")
    assert status == (fault == "quota reached"), printed
    assert "failed: " not in printed or "the Drive is full" in printed
    drive.script = Script([])
    tool(anna, "push")
    drive.script = Script([fault])
    status, printed = tool(bob, "pull")
    assert (status, bob.read(SMALL)) == (0, SMALL), printed
    assert fault in drive.fired
    assert drive.duplicates() == []


def test_a_cut_upload_goes_on_where_it_was(drive, make, tmp_path, tool, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK", 2 * GRAIN)
    big = {"models/tuned/weights": os.urandom(12 * GRAIN)}
    anna = make(big)
    bob = copy(anna, "bob")
    late = Script(["reset mid-upload", "cut without reply", "cut download"])
    drive.script = lambda operation: late(operation) if drive.counts()["put"] > 4 else None
    assert tool(anna, "push")[0] == 0
    assert sum(drive.received) < 17 * GRAIN  # two chunks twice
    assert tool(bob, "pull")[0] == 0
    assert late.left == [] and bob.read(big) == big


def test_an_outage_ends_with_the_reason_for_each_file(drive, make, tmp_path, tool):
    anna = make(SMALL)
    anna.env["DRIVE_PATIENCE"] = "0.05"
    drive.script = lambda operation: "500 with HTML" if drive.counts()["put"] > 2 else None
    status, printed = tool(anna, "push")
    assert status == 1
    assert "failed: models/pretrained/7.bin: Drive answered 500 without a reason" in printed
    drive.script = Script([])
    assert tool(anna, "push")[0] == 0
    assert drive.duplicates() == []


def test_one_file_that_drive_refuses_keeps_no_other_back(drive, make, tmp_path, tool):
    anna = make(SMALL)
    bob = copy(anna, "bob")
    assert tool(anna, "push")[0] == 0
    poor = next(item for item in drive.files() if item.data == SMALL["data/features/train/00001.zip"])
    poor.data = b"other bytes"
    status, printed = tool(bob, "pull")
    assert status == 1
    assert "failed: data/features/train/00001.zip: not on the remote" in printed
    assert bob.read(SMALL)["models/pretrained/3.bin"] == SMALL["models/pretrained/3.bin"]
    assert tool(anna, "push")[0] == 0  # whoever has it mends it
    assert tool(bob, "pull")[0] == 0
    assert bob.read(SMALL) == SMALL


def test_a_damaged_object_is_not_sent(drive, make, tool):
    anna = make(SMALL)
    path = next(path for path in (anna.folder / ".dvc/cache/files/md5").glob("*/*") if path.suffix != ".dir")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")
    path.chmod(0o444)  # DVC trusts what is read-only
    status, printed = tool(anna, "push")
    assert status == 1
    assert re.search(r"failed: .*: damaged in the cache", printed)
    assert "some of its files are not on the remote" in printed
    assert len(drive.files()) == len(anna.objects()) - 2


def test_ctrl_c_ends_a_push_and_the_next_completes_it(drive, make, tmp_path):
    anna = make(SMALL)
    process = anna.start("python", "-m", "tools.drive", "push")

    def interrupt(operation: str) -> str | None:
        if drive.counts()["put"] < 3:
            return None
        os.killpg(process.pid, signal.SIGINT)
        return "silence"

    drive.script = interrupt
    printed, _ = process.communicate()
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in printed and "Traceback" not in printed
    drive.script = Script([])
    anna.tool("push")
    assert len(drive.files()) == len(anna.objects())


# Double objects


def test_every_clone_keeps_the_same_of_double_objects(drive, make, tmp_path, tool):
    anna = make(SMALL)
    tool(anna, "push")
    bob = copy(anna, "bob")
    tool(bob, "pull")
    first, second, third = sorted(drive.files(), key=lambda item: item.title)[:3]
    early, late = "2000-01-01T00:00:00.000Z", "2999-01-01T00:00:00.000Z"
    drive.add(first.title, first.parent, first.data, created=late)
    drive.add(second.title, second.parent, second.data, created=second.created)  # a tie: the lower id stays
    drive.add(third.title, third.parent, b"broken", created=early)
    twins = [item.id for item in drive.files() if item.title == second.title]
    before = {item.id for item in drive.files()}
    kept = []
    for clone in (anna, bob):
        assert tool(clone, "push")[0] == 0
        kept.append({item.id for item in drive.files()})
        for item in drive.items.values():
            item.trashed = item.trashed and item.id not in before
    assert kept[0] == kept[1]
    assert {first.id, min(twins), third.id} <= kept[0] and len(kept[0]) == len(anna.objects())


def test_two_people_push_at_once(drive, make, tmp_path):
    anna = make(SMALL)
    bob = copy(anna, "bob", BOB)
    drive.share(drive.items[drive.root], BOB)
    shutil.copytree(anna.folder / ".dvc/cache", bob.folder / ".dvc/cache")
    bob.run("dvc", "checkout", "-q")
    processes = [clone.start("python", "-m", "tools.drive", "push") for clone in (anna, bob)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert drive.duplicates() == []
    carol, dora = copy(anna, "carol"), copy(anna, "dora", BOB)
    carol.tool("pull")
    dora.run("dvc", "pull")
    assert carol.read(SMALL) == dora.read(SMALL) == SMALL


# Room


def test_a_push_that_cannot_fit_stops_before_it_begins(drive, make, tmp_path, tool):
    anna = make(SMALL)
    drive.quotas[ANNA] = 20_000
    drive.add("old", drive.root, b"x" * 15_000, trashed=True)
    with pytest.raises(UserError, match=r"needs 1\d.* kB, and 5 kB of 20 kB are free \(15 kB lie in the trash\)"):
        tool(anna, "push")
    with pytest.raises(UserError, match="dvc gc --cloud"):
        tool(anna, "check")
    assert uploads(drive) == 0
    drive.quotas[ANNA] = 100_000
    assert tool(anna, "push")[0] == 0


def test_check_counts_by_kind(drive, make, tmp_path, tool):
    anna = make(SMALL)
    drive.quotas[ANNA] = 10**6
    folder = drive.add("checkpoints", drive.root)
    drive.add("step-1.zip", drive.add("digest", folder.id).id, b"x" * 1500)
    rows = {line.split("  ")[0]: line for line in tool(anna, "check")[1].splitlines()}
    assert re.search(r"features +7 \(.* kB\) +–", rows["features"])
    assert re.search(r"models +11 \(", rows["models"])
    assert "1.5 kB" in rows["checkpoints"]
    assert uploads(drive) == 0


# Signing in


def answer(drive: Drive, monkeypatch, capsys, **how) -> None:
    """Have a person follow the printed link, and paste the address that it ends at."""

    def typed(_prompt: str) -> str:
        link = re.search(r"https://accounts\S+", capsys.readouterr().out).group()
        return drive.authorize(link, **how)

    monkeypatch.setattr("click.termui.visible_prompt_func", typed)
    monkeypatch.setenv("DRIVE_CLIENT_SECRET", CLIENT["client_secret"])


CONNECT = ("connect", "--no-browser", "--client-id", CLIENT["client_id"])


def test_secrets_stay_with_their_owner(drive, make, tmp_path):
    anna = make(SMALL)
    shutil.rmtree(anna.folder / ".dvc/tmp")
    (anna.folder / ".dvc/config.local").unlink()
    command = [
        "python",
        "-m",
        "tools.drive",
        *CONNECT,
        f"https://drive.google.com/drive/u/0/folders/{drive.root}?usp=sharing",
    ]
    process = anna.start(*command, DRIVE_CLIENT_SECRET=CLIENT["client_secret"])
    link = next(line.strip() for line in process.stdout if "https://accounts" in line)
    printed, _ = process.communicate(drive.authorize(link) + "\n")
    assert process.returncode == 0, printed
    printed += anna.tool("push") + anna.tool("check") + anna.tool("pull")
    drive.refresh_tokens.clear()
    drive.tokens.clear()
    printed += anna.tool("push", status=1)
    assert "run `python -m tools.drive connect`" in printed
    private = [anna.folder / ".dvc/config.local", anna.folder / ".dvc/tmp/drive-credentials.json"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600, 0o600]
    anna.commit()
    secrets = [CLIENT["client_secret"], "ya29.", "1//", "4/"]
    committed = anna.run("git", "grep", "-I", "", "HEAD")
    assert not [secret for secret in secrets if secret in committed or secret in printed]
    assert "gdrive_trash_only = True" in committed


def test_signing_in_by_a_browser(drive, make, tmp_path):
    anna = make(SMALL)
    browser = tmp_path / "browser.py"
    browser.write_text(
        "import sys, urllib.request\n"
        f"urllib.request.urlopen(sys.argv[1].replace('https://accounts.google.com', '{drive.url}'))\n"
    )
    variables = {"BROWSER": f"{sys.executable} {browser} %s &", "DRIVE_CLIENT_SECRET": CLIENT["client_secret"]}
    anna.tool("connect", drive.root, "--client-id", CLIENT["client_id"], **variables)
    assert '"client_id": "client-1' in (anna.folder / ".dvc/tmp/drive-credentials.json").read_text()


def test_a_colleague_needs_no_folder_and_a_client_once(drive, make, tmp_path, tool, monkeypatch, capsys):
    anna = make(SMALL)
    bob = copy(anna, "bob")
    (bob.folder / ".dvc/config.local").unlink()
    drive.share(drive.items[drive.root], BOB)
    answer(drive, monkeypatch, capsys, account=BOB)
    assert f"{BOB} may write" in tool(bob, *CONNECT)[1]
    assert f"{BOB} may write" in tool(bob, "connect", "--no-browser")[1]


def test_from_a_service_account_to_a_client(drive, make, tmp_path, tool, key, monkeypatch, capsys):
    anna = make({"data/tables/a": b"a"})
    top = drive.shared_drive("robot@lab.iam", ANNA)
    (tmp_path / "key.json").write_text(json.dumps(drive.service_account("robot@lab.iam", key)))
    assert "robot@lab.iam may" in tool(anna, "connect", top.id, "--service-account", str(tmp_path / "key.json"))[1]
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
    answer(drive, monkeypatch, capsys)
    assert f"{ANNA} may" in tool(anna, *CONNECT)[1]
    assert tool(anna, "push")[0] == 0


def test_a_client_in_testing_is_told_apart(drive, make, tmp_path, tool, monkeypatch, capsys):
    anna = make(SMALL)
    drive.testing = True
    answer(drive, monkeypatch, capsys)
    assert "ends after 7 days" in tool(anna, *CONNECT)[1]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda drive: drive.items[drive.root].roles.clear(), "share it with that account as Editor"),
        (lambda drive: drive.share(drive.items[drive.root], ANNA, "reader"), "may only read the folder"),
        (lambda drive: setattr(drive.items[drive.root], "mime", "text/plain"), "is a file: give the link of a folder"),
        (lambda drive: setattr(drive, "api_on", False), "turn it on at https://console"),
        (lambda drive: setattr(drive, "script", always("token", "500 with HTML")), "Invalid response"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(drive, make, tmp_path, tool, monkeypatch, capsys, change, message):
    anna = make({"data/tables/a": b"a"})
    before = anna.read([".dvc/config", ".dvc/config.local"])
    answer(drive, monkeypatch, capsys)
    change(drive)
    with pytest.raises(UserError, match=message):
        tool(anna, *CONNECT)
    assert anna.read(before) == before  # the sign-in that was there stays


def always(operation: str, fault: str):
    return lambda asked: fault if asked == operation else None


def test_a_refusal_is_told(drive, make, tmp_path, tool, monkeypatch, capsys):
    anna = make({"data/tables/a": b"a"})
    answer(drive, monkeypatch, capsys, refuse=True)
    with pytest.raises(UserError, match="publish the OAuth client 'In production'"):
        tool(anna, *CONNECT)


@pytest.mark.parametrize("command", [("push",), ("check",), ("pull",)])
def test_a_sign_in_that_ended_is_told(drive, make, tmp_path, tool, command):
    anna = make({"data/tables/a": b"a"})
    drive.refresh_tokens.clear()
    with pytest.raises(UserError, match=r"expired or was revoked: run `python -m tools.drive connect`"):
        tool(anna, *command)
    (anna.folder / ".dvc/tmp/drive.json").unlink()
    with pytest.raises(UserError, match="not signed in on this machine"):
        tool(anna, *command)


def test_a_wrong_client_secret_is_told(drive, make, tmp_path, tool, monkeypatch, capsys):
    anna = make({"data/tables/a": b"a"})
    answer(drive, monkeypatch, capsys)
    monkeypatch.setenv("DRIVE_CLIENT_SECRET", "GOCSPX-wrong")
    with pytest.raises(UserError, match="does not accept the client id or its secret") as told:
        tool(anna, *CONNECT)
    assert "GOCSPX" not in str(told.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["not a link"], "no link to a Drive folder"),
        ([], "give --client-id"),
        (["--service-account", "gone.json"], "is missing"),
        (["--service-account", "text.json"], "no service account's key"),
        (["--service-account", "inside.json"], "Git does not ignore it"),
        (["--service-account", "../key.json"], "no storage of its own on a personal Drive"),
        (["--service-account", "../other.json"], "does not accept the service account's key"),
        (["--service-account", "../broken.json"], "does not accept the service account's key"),
    ],
)
def test_wrong_arguments_are_told(drive, make, tmp_path, tool, key, arguments, message):
    anna = make({"data/tables/a": b"a"})
    (anna.folder / ".dvc/config.local").unlink()
    good = drive.service_account("robot@lab.iam", key)
    drive.share(drive.items[drive.root], "robot@lab.iam")
    other, broken = good | {"client_email": "other@lab.iam"}, good | {"private_key": "-----BEGIN PRIVATE KEY-----"}
    drive.services["other@lab.iam"] = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    files = {
        "text.json": [],
        "inside.json": good,
        "../key.json": good,
        "../other.json": other,
        "../broken.json": broken,
    }
    for name, content in files.items():
        (anna.folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        tool(anna, "connect", *arguments)


def test_a_proxy_without_pysocks_is_told(drive, make, tmp_path, tool, monkeypatch):
    anna = make({"data/tables/a": b"a"})
    monkeypatch.setitem(sys.modules, "socks", None)
    for command in ("connect", "push"):
        with pytest.raises(UserError, match="pip install PySocks"):
            tool(anna, command)


def test_outside_of_a_repository_one_line_says_so(drive, tmp_path):
    nobody = Clone(drive, tmp_path / "nobody")
    nobody.folder.mkdir()
    printed = nobody.tool("push", status=1)
    assert printed.startswith("Error: you are not inside of a DVC repository") and printed.count("\n") == 1
