import errno
import os
import signal
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from stages.__main__ import SHARING, share_cores
from stages.asr.clips import Clip, write_clips
from stages.runtime.command import report_error
from tests.support.material import ROOT, speech, write_raw
from tests.support.process import Stage
from tests.support.training import wait_for

MANY = {"download.synthetic.train": 2000, "compute.processes": 2}


def download(settings, tmp_path, **options) -> Stage:
    folder = tmp_path / "data"
    folder.mkdir()
    arguments = ["--params", settings(MANY), "--raw", folder / "raw", "--dropped", folder / "d.tsv"]
    return Stage(tmp_path, "download", *arguments, "--details", folder / "d.json", **options)


STOPS = pytest.mark.parametrize(
    ("stop", "status", "line"),
    [
        (Stage.interrupt, 130, "stopped by Ctrl-C"),
        (lambda stage: stage.process.send_signal(signal.SIGTERM), 143, "stopped by SIGTERM"),
    ],
    ids=["Ctrl-C", "SIGTERM"],
)


@STOPS
@pytest.mark.parametrize("module", ["click.core", "numpy", "pydantic"])
def test_a_stop_during_import_is_told_in_one_line(settings, tmp_path, stop, status, line, module):
    with download(settings, tmp_path, flags=("-X", "importtime")) as stage:
        stage.wait_for(f" {module}\n")
        stop(stage)
        assert stage.finish() == (status, [line])
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("tool", ["audit", "checkpoints", "pin"])
def test_a_stop_while_a_tool_is_imported_is_told_in_one_line(tmp_path, tool):
    (tmp_path / "click.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    path = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-m", f"tools.{tool}"], cwd=ROOT, env=path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "stopped by Ctrl-C\n")


@STOPS
@pytest.mark.parametrize("written", [0, 50])
def test_a_stop_during_work_is_told_in_one_line(settings, tmp_path, stop, status, line, written):
    with download(settings, tmp_path) as stage:
        stage.wait_for(" 0/")
        wait_for(stage.process, lambda: len(list((tmp_path / "data").rglob("*.wav"))) >= written)
        stop(stage)
        assert stage.finish() == (status, [line])
    assert not (tmp_path / "data" / "m.json").exists()


@STOPS
def test_a_stop_of_a_pool_is_told_in_one_line(settings, tmp_path, stop, status, line):
    raw = write_raw(tmp_path / "raw", {"c": speech(29.0)})
    write_clips(raw, [Clip(f"c{number:04}", "c.wav", "hej", "voice") for number in range(3000)])
    arguments = ["--params", settings({"compute.processes": 2}), "--clips", raw, "--shards", tmp_path / "shards"]
    with Stage(tmp_path, "featurize", *arguments, "--details", tmp_path / "d.json") as stage:
        stage.wait_for("raw:   0%")
        stop(stage)
        assert stage.finish() == (status, [line])
    assert not (tmp_path / "d.json").exists()


def run_program(lines: list[str]) -> subprocess.CompletedProcess:
    """A program of the project's own, in a process."""
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)


def test_what_a_stop_leaves_half_done_is_not_told():
    lines = [
        "import signal",
        "from stages.runtime.command import run",
        "class Half:",
        "    def __del__(self):",
        "        raise ValueError('is still being written')",
        "def load():",
        "    half = Half()",
        "    signal.raise_signal(signal.SIGINT)",
        "run(load, [])",
    ]
    ended = run_program(lines)
    assert (ended.returncode, ended.stderr) == (130, "stopped by Ctrl-C\n")


def test_a_second_stop_breaks_off_nothing_that_python_does_at_its_end():
    """Such as telling a pool's processes to end, for which it would then wait for ever."""
    lines = [
        "import atexit, os, signal",
        "from stages.runtime.command import run",
        "def stop():",
        "    os.kill(os.getpid(), signal.SIGINT)",
        "atexit.register(lambda: (stop(), print('told all')))",
        "run(stop, [])",
    ]
    ended = run_program(lines)
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "stopped by Ctrl-C\n", "told all\n")


@pytest.mark.parametrize(
    "swallow",
    [
        "type('Last', (), {'__del__': lambda self: stop()})()",
        "os.register_at_fork(after_in_parent=stop); Forking().Process(target=make).start()",
    ],
    ids=["finalizer", "fork"],
)
def test_a_stop_that_python_swallows_ends_the_work_all_the_same(swallow):
    """As when the processes that make batches are forked, or what they sent is freed."""
    lines = [
        "import os, signal, time",
        "from stages.runtime.command import run",
        "from stages.runtime.stops import Forking, leave_interrupts",
        "def stop():",
        "    os.kill(os.getpid(), signal.SIGINT)",
        "def make():",
        "    stop(); leave_interrupts()",
        "def load():",
        f"    {swallow}",
        "    for _ in range(1000):",
        "        time.sleep(0.01)",
        "    print('went on to the end')",
        "run(load, [])",
    ]
    ended = run_program(lines)
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "stopped by Ctrl-C\n", "")


def test_a_terminal_that_knows_no_arrow_gets_the_rest():
    program = "import click; from stages.runtime.command import run; "
    program += "run(lambda: click.command()(lambda: click.echo('1 → 2, Åsa')), [])"
    latin = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=latin, capture_output=True)
    assert (ended.returncode, ended.stdout) == (0, "1 ? 2, Åsa\n".encode("latin-1"))


def test_the_users_mistake_is_told_in_one_line(settings, tmp_path):
    arguments = ["--params", settings(), "--clips", tmp_path / "gone", "--shards", tmp_path / "s"]
    with Stage(tmp_path, "featurize", *arguments, "--details", tmp_path / "d.json") as stage:
        status, lines = stage.finish()
    assert status == 1
    assert lines == [f"Error: {tmp_path / 'gone' / 'clips.tsv'} is missing: run the download stage"]


@pytest.mark.parametrize("arguments", [(), ("nosuch",), ("__main__",)])
def test_an_unknown_stage_is_told_which_there_are(tmp_path, arguments):
    with Stage(tmp_path, *arguments) as stage:
        assert stage.finish() == (1, ["usage: python -m stages {download,featurize,pretrained,train,evaluate} …"])


def test_an_unknown_option_is_named(tmp_path):
    with Stage(tmp_path, "download", "--colour", "red") as stage:
        status, lines = stage.finish()
    assert status == 2
    assert "--colour" in lines[-1]
    assert not [line for line in lines if "Traceback" in line]


def test_our_own_mistake_keeps_its_traceback():
    ended = run_program(["from stages.runtime.command import run", "run(lambda: 1 / 0, [])"])
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr and "ZeroDivisionError" in ended.stderr


@pytest.mark.parametrize("place", ["raw", "d"])
def test_a_file_where_a_folder_belongs_is_one_line(tmp_path, settings, place):
    """And a folder where a file does."""
    path = tmp_path / place
    path.mkdir() if place == "d" else path.write_text("in the way")
    arguments = ["--params", settings(), "--raw", tmp_path / "raw", "--dropped", tmp_path / "d"]
    with Stage(tmp_path, "download", *arguments, "--details", tmp_path / "c") as stage:
        status, lines = stage.finish()
    assert status == 1
    assert len(lines) == 1 and str(path) in lines[0] and "a file lies where a folder belongs" in lines[0]


def test_a_full_disk_is_one_line(settings, tmp_path):
    """/dev/full is a disk without space."""
    for name in ("raw", "details"):
        (tmp_path / name).mkdir()
    (tmp_path / "dropped.tsv.part").symlink_to("/dev/full")
    values = {f"download.synthetic.{split}": 2 for split in ("train", "validation", "test")}
    options = {"params": settings(values), "raw": "raw", "dropped": "dropped.tsv", "details": "details/download.json"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with Stage(tmp_path, "download", *words) as stage:
        status, lines = stage.finish()
    assert status == 1
    assert len(lines) == 1 and "no space is left on the disk" in lines[0]


def test_a_lack_of_permission_is_one_line(capsys):
    assert report_error(PermissionError(errno.EACCES, "Permission denied", "recordings/a.wav")) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Error: recordings/a.wav: permission denied: let this user read and write it (chmod, chown)"
    ]


def test_what_libraries_make_of_a_full_disk_and_a_read_only_one_is_one_line(capsys):
    assert report_error(SafetensorError("Error while serializing: I/O error: No space left (os error 28)")) == 1
    assert report_error(OSError(errno.EROFS, "Read-only file system", "models/tuned")) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Error: no space is left on the disk: free some and run the same command again",
        "Error: models/tuned: its file system is read-only: work in a folder that can be written",
    ]


def test_training_is_imported_without_a_library_that_an_optimizer_alone_wants():
    """In a process of its own, for here it may have been imported before."""
    pytest.importorskip("bitsandbytes")
    program = (
        "import gc, sys; from stages.__main__ import load; from transformers.utils import is_bitsandbytes_available;"
        'load("train"); assert "bitsandbytes" not in sys.modules and is_bitsandbytes_available()'
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_stage_shares_the_cores_unless_the_user_says_otherwise(monkeypatch):
    for name in SHARING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    share_cores()
    assert {name: os.environ[name] for name in SHARING} == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    monkeypatch.delenv("OMP_WAIT_POLICY")  # which share_cores set, not the fixture
