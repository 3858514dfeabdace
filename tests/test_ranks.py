"""Several processes that train one run: real ranks on gloo, really killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import distributed
from transformers import TrainerCallback

from stages.asr.batches import ClipDataset
from stages.asr.device import best_device
from stages.asr.model import load_model
from stages.asr.shards import Shards
from stages.params import load_params
from stages.runtime.errors import UserError
from stages.training import ranks as module
from stages.training.checkpoints import CheckpointManager
from stages.training.ranks import Ranks, buckets, current_ranks, ranks_to_start, run_ranks
from stages.training.run import Run, describe_run
from stages.training.trainer import SpeechTrainer, regularisation
from tests.support.material import ROOT, sounds, write_params, write_shards
from tests.support.ranks import Group, joined, train_together
from tests.support.training import SETTINGS, arguments, newest, results, wait_for

TOGETHER = SETTINGS | {"compute.gpus": 2, "train.max_steps": 16, "train.save_every": 2, "train.layerdrop": 0.2}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, shards_folder) -> Path:
    """What training reads, and the results of two ranks that nobody stopped below ``whole``."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "pretrained").symlink_to(tiny)
    for split in ("train", "validation"):
        (folder / split).symlink_to(shards_folder)
    write_params(folder / "params.yaml", TOGETHER)
    assert train_together(folder, "whole", folder / "params.yaml").wait() == [0, 0]
    return folder


def test_two_ranks_write_a_run_once(place):
    assert [path.name for path in (place / "whole").glob("checkpoints/*/step-*")] == ["step-00000016"]
    log = (place / "whole/log").read_text()
    assert log.count("validation WER") == 1 and log.count("train    0/16") == 1
    (state,) = (place / "whole").glob("checkpoints/*/step-*/rng_state_1.pth")
    assert state.read_bytes() != state.with_name("rng_state.pth").read_bytes()


def test_killed_ranks_end_in_the_same_bytes(place):
    """Of one rank, the other, or both at once, at steps between two checkpoints too."""
    for step, numbers in ((2, [1]), (4, [0]), (8, [])):
        group = train_together(place, "killed", place / "params.yaml")
        while newest(place / "killed") < step and group.ranks[0].exitcode is None:
            time.sleep(0.002)
        group.kill(*numbers)
        assert not (place / "killed/tuned").exists()
    assert train_together(place, "killed", place / "params.yaml").wait() == [0, 0]
    assert (place / "killed/log").read_text().count("resuming run") == 3
    assert results(place, "killed") == results(place, "whole")


def test_ctrl_c_ends_the_command_and_its_ranks_in_one_line_and_they_go_on(place):
    words = [sys.executable, "-m", "stages", "train", *arguments(place, "stopped")]
    with (place / "stopped/log").open("a") as log:
        command = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    wait_for(command, lambda: newest(place / "stopped") >= 2)
    begun = psutil.Process(command.pid).children()
    assert len(begun) == 2
    command.send_signal(signal.SIGINT)
    assert command.wait() == 130
    assert not any(process.is_running() for process in begun)
    last = (place / "stopped/log").read_text().splitlines()[-1]
    assert last == "stopped by Ctrl-C" and "Traceback" not in (place / "stopped/log").read_text()
    assert train_together(place, "stopped", place / "params.yaml").wait() == [0, 0]
    assert results(place, "stopped") == results(place, "whole")


def test_another_number_of_ranks_is_another_run_and_says_so():
    settings, device = load_params(ROOT / "params.yaml").train, torch.device("cpu")
    alone, two, three = (describe_run(settings, {}, "0" * 64, "stages.train", device, count) for count in (1, 2, 3))
    assert "ranks" not in alone.parts["machine"] and len({alone.name, two.name, three.name}) == 3
    assert two.differences(alone.parts) == {"machine": ["ranks: 2, was 1"]}
    assert alone.differences(two.parts) == {"machine": ["ranks: 1, was 2"]}
    assert three.differences(two.parts) == {"machine": ["ranks: 3, was 2"]}
    assert Run(alone.parts).name == alone.name


class Gradients(TrainerCallback):
    """The gradient of each step, as the optimizer gets it: (n_weights,) float32."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *_, model, **__):
        self.steps.append(torch.cat([weights.grad.flatten() for weights in model.parameters()]))


def record(folder: Path, shards: Path, pretrained: Path) -> None:
    """Train, and keep each rank's gradients."""
    params = load_params(folder / "params.yaml")
    model = load_model(pretrained, **regularisation(params.train))
    model.context = params.train.context
    clips, manager = ClipDataset(Shards(shards), model, 448), CheckpointManager(folder / "checkpoints", 1)
    run = SpeechTrainer(model, clips, clips, params.train, params.compute, manager, folder / "curves")
    gradients = Gradients()
    run.add_callback(gradients)
    run.run(None)
    torch.save(gradients.steps, folder / f"rank-{current_ranks().rank}.pt")


def test_a_step_is_the_mean_over_its_tokens_in_however_many_ranks(tmp_path, tiny):
    """Twelve clips, and nine, whose last step has one clip, so that a rank has none; steps have eight.

    The bounds are those of tests/test_train.py, for one process and several batches.
    """
    groups = {}
    for n_clips, ranks, batch_size, accumulation in (
        (12, 1, 8, 1),
        (12, 2, 4, 1),
        (12, 2, 2, 2),
        (9, 1, 4, 2),
        (9, 2, 4, 1),
    ):
        folder = tmp_path / f"{n_clips}-{ranks}-{batch_size}-{accumulation}"
        shards = write_shards(folder / "shards", dict([*sounds().items()][:n_clips]))
        settings = SETTINGS | {"train.batch_size": batch_size, "train.gradient_accumulation": accumulation}
        settings |= {"train.dropout": 0.0, "train.spec_augment.time_prob": 0.0, "train.full_context_share": 0.5}
        settings |= {"train.learning_rate": 1e-3, "train.max_steps": 4, "train.eval_every": 2, "train.save_every": 4}
        write_params(folder / "params.yaml", settings)
        groups[folder] = Group(ranks, folder / "log", joined, record, folder, shards, tiny)
    assert {code for group in groups.values() for code in group.wait()} == {0}
    first, *twelve, before_last, last = groups
    for whole, folder in [*((first, other) for other in twelve), (before_last, last)]:
        ranks = [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]
        for mine, one, other in zip(torch.load(whole / "rank-0.pt"), *ranks, strict=True):
            assert (mine - one).norm() <= 1e-6 * mine.norm() and torch.equal(one, other)
        for curve in ("training.tsv", "validation.tsv"):
            mine, theirs = (np.loadtxt(run / "curves" / curve, skiprows=1) for run in (whole, folder))
            np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def script(body: str) -> list[str]:
    """A command whose ranks do something."""
    lines = [
        "import os, signal, time, torch",
        "from stages.runtime.errors import UserError",
        "from stages.training.ranks import joined_ranks",
        "with joined_ranks() as ranks:",
        *(f"    {line}" for line in body.splitlines()),
    ]
    return [sys.executable, "-c", "\n".join(lines)]


@pytest.mark.parametrize(
    ("body", "message", "shown"),
    [
        ("ranks.rank or os.kill(os.getpid(), 9)\nranks.sum(torch.ones(1))", r"rank 0 of 2 was killed \(SIGKILL\)", ""),
        ("raise UserError('no clip is left')", "^no clip is left$", ""),
        ("assert not ranks.rank, 'odd'\nranks.sum(torch.ones(1))", "rank 1 of 2 failed: AssertionError: odd", "odd"),
    ],
    ids=["killed", "user", "bug"],
)
def test_a_rank_that_fails_ends_the_others_and_is_named_once(body, message, shown, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UserError, match=message):
        run_ranks(2, script(body))
    errors = capfd.readouterr().err
    assert errors.count("Traceback") == bool(shown) and shown in errors


@pytest.mark.parametrize("killed", ["launcher", "dvc"])
def test_ranks_end_with_what_began_them(killed, tmp_path):
    """The launcher takes its ranks with it; of dvc's end, behind the launcher, rank 0 hears."""
    lines = ["from stages.training.parent import Parent", "parent = Parent(launched=True)"]
    lines += ["print(*ranks.gather(os.getpid()), flush=True)", "ranks.rank and signal.pause()"]
    lines += ["while True: " + ("parent.check()" if killed == "dvc" else "signal.pause()")]
    launch = f"from stages.training.ranks import run_ranks; run_ranks(2, {script(chr(10).join(lines))})"
    dvc = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {launch!r}])"
    env = os.environ | {"OMP_NUM_THREADS": "1", "DVC_ROOT": "/"}
    with (tmp_path / "log").open("w") as log:
        top = subprocess.Popen([sys.executable, "-c", dvc], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log)
    begun = [psutil.Process(int(number)) for number in top.stdout.readline().split()]
    launcher = begun[0].parent()
    (launcher if killed == "launcher" else top).kill()
    assert not psutil.wait_procs([launcher, *begun], timeout=60)[1]
    top.wait()
    said = (tmp_path / "log").read_text()
    assert (f"process {top.pid} (dvc), which started this, is gone" in said) == (killed == "dvc")


def test_one_process_starts_none_and_joins_none(monkeypatch):
    for name in module.JOINING:
        monkeypatch.delenv(name, raising=False)
    assert ranks_to_start(1) == 0 and current_ranks() == Ranks() and not distributed.is_initialized()
    with module.joined_ranks() as ranks:
        assert ranks == Ranks() and not distributed.is_initialized()
    value, weight = torch.ones(2), torch.nn.Parameter(torch.ones(2))
    assert ranks.sum(value) is value and ranks.share(value) is value and ranks.gather(1) == [1]
    ranks.sum_gradients([weight])
    assert weight.grad is None


def test_there_are_as_many_ranks_as_gpus_or_as_were_asked_for(monkeypatch):
    if best_device().type == "cpu":
        assert ranks_to_start("auto") == 0 and ranks_to_start(3) == 3
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for kind, gpus in (("cuda", 2), ("mps", 0)):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda kind=kind: torch.device(kind))
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert ranks_to_start(1) == 0
        assert ranks_to_start("auto") == gpus
        with pytest.raises(UserError, match=r"compute\.gpus is 3, and"):
            ranks_to_start(3)
    for name in module.JOINING:
        monkeypatch.setenv(name, "1")
    assert ranks_to_start(3) == 0  # torchrun has started them


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, ["0", "1"]), ("2,3", ["2", "3"]), ("MIG-a,MIG-b", ["MIG-a", "MIG-b"])]
)
def test_each_rank_has_a_gpu_of_its_own(visible, gpus, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [module.own_gpu(local) for local in range(2)] == gpus


def test_buckets_hold_what_they_can_in_order():
    tensors = [torch.empty(size) for size in (3, 2, 9, 1, 4, 1)]
    assert [[len(one) for one in bucket] for bucket in buckets(tensors, 5)] == [[3, 2], [9], [1, 4], [1]]
    assert [*buckets([], 5)] == []
