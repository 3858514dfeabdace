"""The Google Drive remote, against a stand-in on the loopback that keeps Drive's rules."""

import ast
import json
import os
import re
import shlex
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
from stages.runtime.imports import imported_names
from tests.support.authority import make_authority
from tests.support.clones import ANNA, Clone, dvc_targets, sample_files
from tests.support.drive import CLIENT, FAULTS, UPLOAD_UNIT, Drive, FaultScript
from tools.drive import __main__ as main_module
from tools.drive import google, retry, stores
from tools.drive.__main__ import main

SMALL_FILES = sample_files(shards=4, models=1, others=1) | {"models/pretrained/empty": b""}
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
    """Repositories by the names of their files, for ``make_clone``."""
    return {}


@pytest.fixture
def make_clone(drive, tmp_path, tmp_path_factory, templates) -> Callable[..., Clone]:
    """Call with files and a name: a repository in which DVC keeps these files, signed in as Anna."""

    def call(files: dict[str, bytes], name: str = "anna") -> Clone:
        if tuple(files) not in templates:
            templates[tuple(files)] = build_template(Clone(drive, tmp_path_factory.mktemp("template") / "repo"), files)
        clone = Clone(drive, tmp_path / name)
        shutil.copytree(templates[tuple(files)], clone.folder, symlinks=True)
        clone.connect().commit()
        return clone

    return call


def build_template(clone: Clone, files: dict[str, bytes]) -> Path:
    clone.write(files)
    clone.run("git", "init", "-q", "-b", "main")
    Repo.init(str(clone.folder)).close()
    with Repo(str(clone.folder)) as repo:
        repo.add([str(clone.folder / name) for name in dvc_targets(files)])
    return clone.folder


def clone_of(clone: Clone, name: str, account: str = ANNA) -> Clone:
    """What another person has after cloning and connecting: no data yet."""
    other = Clone(clone.drive, clone.folder.parent / name)
    clone.run("git", "clone", "-q", ".", str(other.folder))
    return other.connect(account)


def uploads(drive: Drive) -> int:
    return drive.counts()["start"]


# Round trips


@pytest.mark.parametrize(("sender", "receiver"), [("tool", "dvc"), ("dvc", "tool"), ("tool", "tool")])
def test_what_one_pushes_the_other_pulls(drive, make_clone, tmp_path, sender, receiver):
    drive.page_size = 3
    anna = make_clone(SMALL_FILES)
    bob = clone_of(anna, "bob", BOB)
    drive.share(drive.items[drive.root], BOB)
    command = {"tool": ["python", "-m", "tools.drive"], "dvc": ["dvc"]}
    anna.run(*command[sender], "push")
    bob.run(*command[receiver], "pull")
    assert bob.read(SMALL_FILES) == SMALL_FILES
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
    bob = clone_of(anna, "bob", BOB)
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


@pytest.mark.parametrize(("shape", "most"), [((20, 0, 0), 130), ((20, 2, 6), 260)])
def test_requests_stay_few(drive, make_clone, tmp_path, tool, shape, most):
    files = sample_files(*shape)
    anna = make_clone(files)
    bob = clone_of(anna, "bob")
    for clone, command in ((anna, "push"), (bob, "pull")):
        drive.operations.clear()
        assert tool(clone, command)[0] == 0
        assert len(drive.operations) <= most
    assert bob.read(files) == files


def test_a_shared_drive_takes_a_service_account(drive, make_clone, tmp_path, tool, key):
    anna = make_clone(SMALL_FILES)
    top = drive.shared_drive("robot@lab.iam")
    (tmp_path / "key.json").write_text(json.dumps(drive.service_account("robot@lab.iam", key)))
    status, printed = tool(anna, "connect", f"gdrive://{top.id}/lab", "--service-account", str(tmp_path / "key.json"))
    assert status == 0 and "robot@lab.iam can write" in printed
    assert tool(anna, "push")[0] == 0
    bob = clone_of(anna, "bob", BOB)  # a colleague with a client of their own
    drive.share(top, BOB)
    bob.connect(BOB, f"{top.id}/lab").run("dvc", "pull")
    assert bob.read(SMALL_FILES) == SMALL_FILES


def test_gc_removes_what_is_not_used_to_the_trash(drive, make_clone, tmp_path):
    anna = make_clone(SMALL_FILES)
    anna.tool("push")
    old = len(drive.files())
    anna.write({"data/tables/0.tsv": b"new"})
    anna.run("dvc", "add", "-q", "data/tables/0.tsv")
    anna.tool("push")
    anna.run("dvc", "gc", "--cloud", "--all-commits", "--force")
    assert len(drive.files()) == old + 1  # a commit needs each
    anna.run("dvc", "gc", "--cloud", "--workspace", "--force")
    assert (len(drive.files()), len(drive.files(trashed=True))) == (old, 1)
    assert "in sync" in anna.run("dvc", "status", "-c")


def test_a_folder_is_the_simplest_remote(drive, make_clone, tmp_path, tool):
    anna = make_clone(SMALL_FILES)
    bob = clone_of(anna, "bob")
    for clone in (anna, bob):
        clone.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    assert "features" in tool(anna, "check")[1]
    assert tool(anna, "push")[0] == 0
    assert "up to date" in anna.run("dvc", "push")
    assert tool(bob, "pull")[0] == 0
    assert bob.read(SMALL_FILES) == SMALL_FILES
    assert drive.operations == []


# Faults


def test_retrying_knows_no_remote():
    """Each store judges its own errors; what tries again imports the standard library alone."""
    names = {name.partition(".")[0] for name in imported_names(Path(retry.__file__).read_text())}
    assert names <= sys.stdlib_module_names


def test_a_bug_of_our_own_is_not_tried_again(make_clone, monkeypatch):
    monkeypatch.setattr("socket.setdefaulttimeout", lambda seconds: None)  # it would outlive the test
    anna = make_clone({"data/tables/a": b"a"})
    anna.run("dvc", "remote", "add", "store", str(anna.folder.parent / "store"))
    policy = retry.RetryPolicy(backoff=60, patience=600, timeout=60)
    with Repo(str(anna.folder)) as repo:
        store = stores.open_store(repo, "store", policy)
    with pytest.raises(LookupError):
        store.with_retries(lambda: [][0])


def test_a_folder_that_cannot_be_written_says_why(drive, make_clone, tool):
    anna = make_clone({"data/tables/a": b"a"})
    anna.run("dvc", "remote", "add", "-d", "store", "/dev/null/store")
    status, printed = tool(anna, "push")
    assert status == 1
    assert "failed: data/tables/a: Not a directory: /dev/null/store" in printed


def test_an_untrusted_certificate_is_reported_at_once(drive, make_clone, tmp_path, tool):
    anna = make_clone({"data/tables/a": b"a"})
    other, _ = make_authority(tmp_path / "other", ["www.example.com"])
    anna.env |= {"HTTPLIB2_CA_CERTS": str(other), "DRIVE_BACKOFF": "60"}
    with pytest.raises(UserError, match="set HTTPLIB2_CA_CERTS"):
        tool(anna, "push")


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_each_way_ends_well(drive, make_clone, tmp_path, tool, fault):
    anna = make_clone(SMALL_FILES)
    bob = clone_of(anna, "bob")
    anna.env["DRIVE_TIMEOUT"] = bob.env["DRIVE_TIMEOUT"] = "0.3"
    drive.script = FaultScript([fault])
    status, printed = tool(anna, "push")
    assert status == (fault == "quota reached"), printed
    assert "failed: " not in printed or "the Drive is full" in printed
    drive.script = FaultScript([])
    tool(anna, "push")
    drive.script = FaultScript([fault])
    status, printed = tool(bob, "pull")
    assert (status, bob.read(SMALL_FILES)) == (0, SMALL_FILES), printed
    assert fault in drive.injected
    assert drive.duplicates() == []


def test_a_cut_upload_goes_on_where_it_was(drive, make_clone, tmp_path, tool, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK_BYTES", 2 * UPLOAD_UNIT)
    big = {"models/tuned/weights": os.urandom(12 * UPLOAD_UNIT)}
    anna = make_clone(big)
    bob = clone_of(anna, "bob")
    late = FaultScript(["reset mid-upload", "cut without reply", "cut download"])
    drive.script = lambda operation: late(operation) if drive.counts()["put"] > 4 else None
    assert tool(anna, "push")[0] == 0
    assert sum(drive.received) < 17 * UPLOAD_UNIT  # two chunks twice
    assert tool(bob, "pull")[0] == 0
    assert late.left == [] and bob.read(big) == big


def test_an_outage_ends_with_the_reason_for_each_file(drive, make_clone, tmp_path, tool):
    anna = make_clone(SMALL_FILES)
    anna.env["DRIVE_PATIENCE"] = "0.05"
    drive.script = lambda operation: "500 with HTML" if drive.counts()["put"] > 2 else None
    status, printed = tool(anna, "push")
    assert status == 1
    assert "failed: models/pretrained/7.bin: Drive answered 500 without a reason" in printed
    drive.script = FaultScript([])
    assert tool(anna, "push")[0] == 0
    assert drive.duplicates() == []


def test_one_file_that_drive_refuses_keeps_no_other_back(drive, make_clone, tmp_path, tool):
    anna = make_clone(SMALL_FILES)
    bob = clone_of(anna, "bob")
    assert tool(anna, "push")[0] == 0
    poor = next(item for item in drive.files() if item.data == SMALL_FILES["data/features/train/00001.zip"])
    poor.data = b"other bytes"
    status, printed = tool(bob, "pull")
    assert status == 1
    assert "failed: data/features/train/00001.zip: not on the remote" in printed
    assert bob.read(SMALL_FILES)["models/pretrained/3.bin"] == SMALL_FILES["models/pretrained/3.bin"]
    assert tool(anna, "push")[0] == 0  # whoever has it mends it
    assert tool(bob, "pull")[0] == 0
    assert bob.read(SMALL_FILES) == SMALL_FILES


def test_a_damaged_object_is_not_sent(drive, make_clone, tool):
    anna = make_clone(SMALL_FILES)
    path = next(path for path in (anna.folder / ".dvc/cache/files/md5").glob("*/*") if path.suffix != ".dir")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")
    path.chmod(0o444)  # DVC trusts what is read-only
    status, printed = tool(anna, "push")
    assert status == 1
    assert re.search(r"failed: .*: damaged in the cache", printed)
    assert "some of its files are not on the remote" in printed
    assert len(drive.files()) == len(anna.cached_objects()) - 2


def test_ctrl_c_ends_a_push_and_the_next_completes_it(drive, make_clone, tmp_path):
    anna = make_clone(SMALL_FILES)
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
    drive.script = FaultScript([])
    anna.tool("push")
    assert len(drive.files()) == len(anna.cached_objects())


# Duplicates


def test_every_clone_keeps_the_same_of_duplicates(drive, make_clone, tmp_path, tool):
    anna = make_clone(SMALL_FILES)
    tool(anna, "push")
    bob = clone_of(anna, "bob")
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
    assert {first.id, min(twins), third.id} <= kept[0] and len(kept[0]) == len(anna.cached_objects())


def test_two_people_push_at_once(drive, make_clone, tmp_path):
    anna = make_clone(SMALL_FILES)
    bob = clone_of(anna, "bob", BOB)
    drive.share(drive.items[drive.root], BOB)
    shutil.copytree(anna.folder / ".dvc/cache", bob.folder / ".dvc/cache")
    bob.run("dvc", "checkout", "-q")
    processes = [clone.start("python", "-m", "tools.drive", "push") for clone in (anna, bob)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert drive.duplicates() == []
    carol, dora = clone_of(anna, "carol"), clone_of(anna, "dora", BOB)
    carol.tool("pull")
    dora.run("dvc", "pull")
    assert carol.read(SMALL_FILES) == dora.read(SMALL_FILES) == SMALL_FILES


# The manual

MANUAL = Path(main_module.__file__).with_name("README.md").read_text(encoding="utf-8")


def test_the_manual_calls_every_command_and_only_with_options_that_exist():
    called = set()
    for line in re.findall(r"^python -m tools\.drive (.*)", MANUAL, re.MULTILINE):
        name, *arguments = shlex.split(line, comments=True)
        main.commands[name].make_context(name, arguments)
        called.add(name)
    assert called == set(main.commands)


def test_the_manual_quotes_the_messages_as_they_are():
    texts = [
        node.value
        for path in Path(main_module.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quoted = re.findall(r"^\| ‘(.*?)’", MANUAL, re.MULTILINE)
    parts = [part.strip() for message in quoted for part in message.split("…")]
    assert [part for part in parts if not any(part in text for text in texts)] == []
    remedies = [*google.SIGN_IN_REMEDIES.values(), *google.RESPONSE_REMEDIES.values(), google.NO_SERVICE_STORAGE]
    assert [remedy for remedy in remedies if remedy.partition(":")[0] not in MANUAL] == []


# Storage quota


def test_a_push_that_cannot_fit_stops_before_it_begins(drive, make_clone, tmp_path, tool):
    anna = make_clone(SMALL_FILES)
    drive.quotas[ANNA] = 20_000
    drive.add("old", drive.root, b"x" * 15_000, trashed=True)
    with pytest.raises(UserError, match=r"needs 1\d.* kB, but only 5 kB of 20 kB is free \(the trash holds 15 kB\)"):
        tool(anna, "push")
    with pytest.raises(UserError, match="dvc gc --cloud"):
        tool(anna, "check")
    assert uploads(drive) == 0
    drive.quotas[ANNA] = 100_000
    assert tool(anna, "push")[0] == 0


def test_check_counts_by_kind(drive, make_clone, tmp_path, tool):
    anna = make_clone(SMALL_FILES)
    drive.quotas[ANNA] = 10**6
    folder = drive.add("checkpoints", drive.root)
    drive.add("step-1.zip", drive.add("digest", folder.id).id, b"x" * 1500)
    rows = {line.split("  ")[0]: line for line in tool(anna, "check")[1].splitlines()}
    assert re.search(r"features +7 \(.* kB\) +–", rows["features"])
    assert re.search(r"models +11 \(", rows["models"])
    assert "1.5 kB" in rows["checkpoints"]
    assert uploads(drive) == 0


# Signing in


def answer_sign_in(drive: Drive, monkeypatch, capsys, **how) -> None:
    """Have a person follow the printed link, and paste the address that it ends at."""

    def typed(_prompt: str) -> str:
        link = re.search(r"https://accounts\S+", capsys.readouterr().out).group()
        return drive.authorize(link, **how)

    monkeypatch.setattr("click.termui.visible_prompt_func", typed)
    monkeypatch.setenv("DRIVE_CLIENT_SECRET", CLIENT["client_secret"])


CONNECT = ("connect", "--no-browser", "--client-id", CLIENT["client_id"])


def test_secrets_stay_with_their_owner(drive, make_clone, tmp_path):
    anna = make_clone(SMALL_FILES)
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


def test_signing_in_by_a_browser(drive, make_clone, tmp_path):
    anna = make_clone(SMALL_FILES)
    browser = tmp_path / "browser.py"
    browser.write_text(
        "import sys, urllib.request\n"
        f"urllib.request.urlopen(sys.argv[1].replace('https://accounts.google.com', '{drive.url}'))\n"
    )
    variables = {"BROWSER": f"{sys.executable} {browser} %s &", "DRIVE_CLIENT_SECRET": CLIENT["client_secret"]}
    anna.tool("connect", drive.root, "--client-id", CLIENT["client_id"], **variables)
    assert '"client_id": "client-1' in (anna.folder / ".dvc/tmp/drive-credentials.json").read_text()


def test_a_colleague_needs_no_folder_and_a_client_once(drive, make_clone, tmp_path, tool, monkeypatch, capsys):
    anna = make_clone(SMALL_FILES)
    bob = clone_of(anna, "bob")
    (bob.folder / ".dvc/config.local").unlink()
    drive.share(drive.items[drive.root], BOB)
    answer_sign_in(drive, monkeypatch, capsys, account=BOB)
    assert f"{BOB} can write" in tool(bob, *CONNECT)[1]
    assert f"{BOB} can write" in tool(bob, "connect", "--no-browser")[1]


def test_from_a_service_account_to_a_client(drive, make_clone, tmp_path, tool, key, monkeypatch, capsys):
    anna = make_clone({"data/tables/a": b"a"})
    top = drive.shared_drive("robot@lab.iam", ANNA)
    (tmp_path / "key.json").write_text(json.dumps(drive.service_account("robot@lab.iam", key)))
    assert "robot@lab.iam can" in tool(anna, "connect", top.id, "--service-account", str(tmp_path / "key.json"))[1]
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
    answer_sign_in(drive, monkeypatch, capsys)
    assert f"{ANNA} can" in tool(anna, *CONNECT)[1]
    assert tool(anna, "push")[0] == 0


def test_a_client_in_testing_is_warned_of(drive, make_clone, tmp_path, tool, monkeypatch, capsys):
    anna = make_clone(SMALL_FILES)
    drive.testing = True
    answer_sign_in(drive, monkeypatch, capsys)
    assert "ends after 7 days" in tool(anna, *CONNECT)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda drive: drive.items[drive.root].roles.clear(), "share it with that account as Editor"),
        (lambda drive: drive.share(drive.items[drive.root], ANNA, "reader"), "can only read the folder"),
        (lambda drive: setattr(drive.items[drive.root], "mime", "text/plain"), "is a file: give the link of a folder"),
        (lambda drive: setattr(drive, "api_enabled", False), "enable it at https://console"),
        (lambda drive: setattr(drive, "script", always_fault("token", "500 with HTML")), "Invalid response"),
    ],
)
def test_a_wrong_folder_is_reported(drive, make_clone, tmp_path, tool, monkeypatch, capsys, change, message):
    anna = make_clone({"data/tables/a": b"a"})
    before = anna.read([".dvc/config", ".dvc/config.local"])
    answer_sign_in(drive, monkeypatch, capsys)
    change(drive)
    with pytest.raises(UserError, match=message):
        tool(anna, *CONNECT)
    assert anna.read(before) == before  # the sign-in that was there stays


def always_fault(operation: str, fault: str):
    return lambda asked: fault if asked == operation else None


def test_a_refused_sign_in_is_reported(drive, make_clone, tmp_path, tool, monkeypatch, capsys):
    anna = make_clone({"data/tables/a": b"a"})
    answer_sign_in(drive, monkeypatch, capsys, refuse=True)
    with pytest.raises(UserError, match="publish the OAuth client 'In production'"):
        tool(anna, *CONNECT)


@pytest.mark.parametrize("command", [("push",), ("check",), ("pull",)])
def test_an_expired_sign_in_is_reported(drive, make_clone, tmp_path, tool, command):
    anna = make_clone({"data/tables/a": b"a"})
    drive.refresh_tokens.clear()
    with pytest.raises(UserError, match=r"expired or was revoked: run `python -m tools.drive connect`"):
        tool(anna, *command)
    (anna.folder / ".dvc/tmp/drive.json").unlink()
    with pytest.raises(UserError, match="not signed in on this machine"):
        tool(anna, *command)


def test_a_wrong_client_secret_is_reported(drive, make_clone, tmp_path, tool, monkeypatch, capsys):
    anna = make_clone({"data/tables/a": b"a"})
    answer_sign_in(drive, monkeypatch, capsys)
    monkeypatch.setenv("DRIVE_CLIENT_SECRET", "GOCSPX-wrong")
    with pytest.raises(UserError, match="does not accept the client id or its secret") as error:
        tool(anna, *CONNECT)
    assert "GOCSPX" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["not a link"], "neither a link to a Drive folder nor the id of one"),
        ([], "give --client-id"),
        (["--service-account", "gone.json"], "is missing"),
        (["--service-account", "text.json"], "not the key of a service account"),
        (["--service-account", "inside.json"], "Git does not ignore it"),
        (["--service-account", "../key.json"], "no storage of its own on a personal Drive"),
        (["--service-account", "../other.json"], "does not accept the service account's key"),
        (["--service-account", "../broken.json"], "does not accept the service account's key"),
    ],
)
def test_wrong_arguments_are_reported(drive, make_clone, tmp_path, tool, key, arguments, message):
    anna = make_clone({"data/tables/a": b"a"})
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


def test_a_proxy_without_pysocks_is_reported(drive, make_clone, tmp_path, tool, monkeypatch):
    anna = make_clone({"data/tables/a": b"a"})
    monkeypatch.setitem(sys.modules, "socks", None)
    for command in ("connect", "push"):
        with pytest.raises(UserError, match="pip install PySocks"):
            tool(anna, command)


def test_drive_outside_of_a_repository_says_so_in_one_line(drive, tmp_path):
    nobody = Clone(drive, tmp_path / "nobody")
    nobody.folder.mkdir()
    printed = nobody.tool("push", status=1)
    assert printed.startswith("Error: you are not inside of a DVC repository") and printed.count("\n") == 1
