"""Runs that are stopped go on as if nothing had happened: the real command, really killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.material import ROOT, write_params
from tests.support.training import SETTINGS, Training, arguments, make_place, newest, results, start, wait_for


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, shards_folder) -> Path:
    """What training reads, and the results of a run that nobody stopped."""
    return make_place(tmp_path_factory.mktemp("runs"), tiny, shards_folder, SETTINGS)


@pytest.mark.parametrize(
    ("number", "status", "steps", "workers"),
    [(signal.SIGKILL, -9, (8, 20, 32), 0), (signal.SIGINT, 130, (20,), 2), (signal.SIGTERM, 143, (20,), 0)],
    ids=["SIGKILL", "SIGINT", "SIGTERM"],
)
def test_a_stopped_run_ends_in_the_same_bytes(place, number, status, steps, workers):
    """Ctrl-C as a terminal has it, which all processes of the group get; processes that make batches change no byte."""
    name = number.name
    params = write_params(place / f"{name}.yaml", SETTINGS | {"compute.loader_workers": workers})
    for step in steps:
        process = start(place, name, params)
        wait_for(process, lambda least=step: newest(place / name) >= least)
        if number == signal.SIGINT:
            interrupt_makers(process)
        process.send_signal(number)
        assert process.wait() == status
        assert not (place / name / "tuned").exists()
    assert start(place, name, params).wait() == 0
    assert results(place, name) == results(place, "whole")
    log = (place / name / "log").read_text()
    assert "Traceback" not in log
    assert log.count("resuming run") == len(steps) and "of 60" in log
    assert newest(place / name) == 60 and len(list((place / name).glob("checkpoints/*/step-*"))) == 1
    assert not list((place / name).glob("checkpoints/*/partial-*"))


def interrupt_makers(process: Training) -> None:
    """Once there are processes that make batches, which an epoch has for a moment."""
    makers: list[psutil.Process] = []
    while not makers and process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            makers = psutil.Process(process.pid).children()
    for maker in makers:
        with suppress(psutil.NoSuchProcess):
            maker.send_signal(signal.SIGINT)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_taken(place):
    process = start(place, "damaged")
    wait_for(process, lambda: newest(place / "damaged") >= 12)
    process.kill()
    process.wait()
    last, before = sorted((place / "damaged").glob("checkpoints/*/step-*"), reverse=True)[:2]
    data = bytearray((last / "optimizer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (last / "optimizer.pt").unlink()
    (last / "optimizer.pt").write_bytes(data)
    assert start(place, "damaged").wait() == 0
    log = (place / "damaged/log").read_text()
    assert f"{last} is damaged: optimizer.pt is not what was written" in log
    assert f"at step {int(before.name[5:])} of 60" in log
    assert results(place, "damaged") == results(place, "whole")


def test_a_second_process_waits_for_the_first_and_takes_over(place):
    first = start(place, "pair")
    wait_for(first, lambda: newest(place / "pair") >= 4)
    first.send_signal(signal.SIGSTOP)  # so that it cannot finish meanwhile
    second = start(place, "pair")
    wait_for(second, lambda: "waiting for it" in (place / "pair/log").read_text())
    assert f"held by process {first.pid}" in (place / "pair/log").read_text()
    first.kill()
    assert second.wait() == 0
    assert results(place, "pair") == results(place, "whole")


def test_a_trainer_whose_dvc_is_gone_stops_without_touching_an_out(place):
    """A shell stands in for `dvc`, which runs its stages through one."""
    script = (
        "import subprocess, sys;"
        "p = subprocess.Popen([sys.executable, '-m', 'stages', 'train', *sys.argv[1:]]);"
        "print(p.pid, flush=True); p.wait()"
    )
    options, log = arguments(place, "orphan"), place / "orphan/log"
    with log.open("w") as said:
        parent = subprocess.Popen(
            [sys.executable, "-c", script, *options],
            cwd=ROOT,
            env=os.environ | {"DVC_ROOT": "/"},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
    pid = int(parent.stdout.readline())
    wait_for(parent, lambda: newest(place / "orphan") >= 4)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)
    assert not (place / "orphan/tuned").exists()
    assert f"process {parent.pid} (dvc), which started this, is gone" in log.read_text()


def test_another_parameter_starts_afresh_and_says_why_and_going_back_resumes(place):
    changed = write_params(place / "changed.yaml", SETTINGS | {"train.learning_rate": 2e-2, "train.max_steps": 8})
    process = start(place, "there-and-back")
    wait_for(process, lambda: newest(place / "there-and-back") >= 8)
    process.kill()
    process.wait()
    assert start(place, "there-and-back", changed).wait() == 0
    log = (place / "there-and-back/log").read_text()
    assert "afresh" in log and "learning_rate: 0.02, was 0.01" in log
    assert start(place, "there-and-back").wait() == 0
    assert "resuming run" in (place / "there-and-back/log").read_text().split("afresh")[1]
    assert results(place, "there-and-back") == results(place, "whole")
    (left,) = (place / "there-and-back").glob("checkpoints/*/step-*")  # the run that had finished made room
    assert left.name == "step-00000060"


def test_a_run_of_other_code_is_adopted_when_told_to_and_recorded(place):
    process = start(place, "adopt")
    wait_for(process, lambda: newest(place / "adopt") >= 8)
    process.kill()
    process.wait()
    (folder,) = (place / "adopt/checkpoints").iterdir()
    parts = json.loads((folder / "parts.json").read_text())
    parts["code"]["stages.asr.batches"] = "0" * 64
    (folder / "parts.json").write_text(json.dumps(parts))
    other = folder.rename(folder.with_name("0123456789abcdef"))
    assert start(place, "adopt", VISKA_ADOPT="012345").wait() == 0
    assert json.loads((place / "adopt/details.json").read_text())["adopted"] == {"run": "012345", "differs": ["code"]}
    assert (place / "adopt/tuned/model.safetensors").read_bytes() == results(place, "whole")["tuned/model.safetensors"]
    assert other.exists()


def test_a_fresh_start_passes_over_the_checkpoints(place):
    process = start(place, "fresh")
    wait_for(process, lambda: newest(place / "fresh") >= 8)
    process.kill()
    process.wait()
    assert start(place, "fresh", VISKA_FRESH="1").wait() == 0
    assert "resuming run" not in (place / "fresh/log").read_text()
    assert results(place, "fresh") == results(place, "whole")
