"""``python -m bench.ranks``: several ranks train one run and are killed at random moments, against ranks left alone.

A tiny model and clips without end: no clip may be lost or come twice in an epoch, whichever rank has it, and killed
ranks, one of them or all, must end in the bytes of those that nobody touched, as must those that `torchrun` begins,
each on a node of its own.
"""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

from stages.asr.batches import BatchItem, ClipDataset
from stages.params import load_params
from stages.pretrained import pretrained
from tests.support.material import ROOT, TINY, speech, write_params, write_shards
from tests.support.ranks import Group, run_command, train_together
from tests.support.training import RESULTS, SETTINGS, arguments, newest, results

SAVE_EVERY = 20
TRAINING = SETTINGS | {
    "train.max_steps": None,
    "train.log_every": 10,
    "train.eval_every": 200,
    "train.save_every": SAVE_EVERY,
    "train.batch_size": 8,
    "train.learning_rate": 1e-3,
}


@click.command()
@click.option("--ranks", default=2, show_default=True)
@click.option("--clips", default=2404, show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(ranks: int, clips: int, epochs: int, kills: int, seed: int) -> None:
    """Train, count the clips, kill, begin again, compare."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        params = prepare(place, clips, epochs)
        begun = time.monotonic()
        group = Group(ranks, place / "log", record_and_train, arguments(place, "whole", params), place)
        if any(group.wait()):
            sys.exit((place / "log").read_text()[-2000:])
        seconds = time.monotonic() - begun
        click.echo(count(place, ranks, clips, epochs))
        click.echo(begin_by_torchrun(place, params, ranks))
        click.echo(kill(place, params, ranks, kills, seconds, rng))


def prepare(place: Path, clips: int, epochs: int) -> Path:
    """What training reads; returns its params.yaml."""
    draw = random.Random(0)
    sounds = {f"clip-{number:05}": speech(draw.uniform(0.2, 1.9), number) for number in range(clips)}
    write_shards(place / "train", sounds)
    write_shards(place / "validation", {name: sounds[name] for name in [*sounds][:24]})
    whisper = load_params(write_params(place / "tiny.yaml", TINY)).whisper
    pretrained(whisper, place / "train", place / "pretrained")
    return write_params(place / "params.yaml", TRAINING | {"train.epochs": epochs})


def record_and_train(options: list[str], place: Path) -> None:
    """A rank that writes down which clips it is given for training, by epoch."""
    read = ClipDataset.__getitem__
    with (place / f"given-{os.environ['RANK']}").open("w", buffering=1) as given:

        def recorded(data: ClipDataset, item: BatchItem) -> dict:
            if item.epoch is not None:
                given.write("".join(f"{item.epoch} {place}\n" for place in item.places))
            return read(data, item)

        ClipDataset.__getitem__ = recorded
        run_command(options)


def count(place: Path, ranks: int, clips: int, epochs: int) -> str:
    """Returns a line of figures, or exits where an epoch lacks a clip or has one twice."""
    given = [(place / f"given-{rank}").read_text().splitlines() for rank in range(ranks)]
    times = Counter(line for lines in given for line in lines)
    if len(times) != clips * epochs or set(times.values()) != {1}:
        sys.exit(f"{clips * epochs - len(times)} clips lost, {sum(times.values()) - len(times)} given twice")
    shares = ", ".join(f"{len(lines):,}" for lines in given)
    return f"{epochs} epochs of {clips:,} clips: each clip once an epoch, {shares} by rank"


def begin_by_torchrun(place: Path, params: Path, ranks: int) -> str:
    """Returns a line, or exits where bytes differ."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = f"--nnodes {ranks} --nproc-per-node 1 --rdzv-backend c10d --rdzv-id 1 --local-addr 127.0.0.1".split()
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, "--rdzv-endpoint", meeting]
    command += ["-m", "stages", "train", *arguments(place, "nodes", params)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with (place / "nodes/log").open("w") as log:
        agents = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log) for _ in range(ranks)]
        statuses = [agent.wait() for agent in agents]
    if any(statuses) or results(place, "nodes") != results(place, "whole"):
        sys.exit((place / "nodes/log").read_text()[-2000:])
    return f"begun by torchrun on {ranks} nodes: the same bytes"


def kill(place: Path, params: Path, ranks: int, wanted: int, seconds: float, rng: random.Random) -> str:
    """Kill one rank or all, begin again; returns a line of figures, or exits where bytes differ."""
    kills = runs = repeated = 0
    while kills < wanted or (place / "killed").exists():
        group = train_together(place, "killed", params, ranks)
        end = time.monotonic() + rng.uniform(0, 2 * seconds / wanted)
        while group.ranks[0].exitcode is None and (kills >= wanted or time.monotonic() < end):
            time.sleep(0.01)
        if group.ranks[0].exitcode is None:
            group.kill(*rng.choice([*([number] for number in range(ranks)), []]))
            kills += 1
            repeated = max(repeated, last_step(place / "killed") - newest(place / "killed"))
            continue
        if any(group.wait()) or results(place, "killed") != results(place, "whole"):
            kept = shutil.copytree(place, tempfile.mkdtemp() + "/kept")
            sys.exit(f"one of {', '.join(RESULTS)} is not the same: see {kept}")
        runs += 1
        shutil.rmtree(place / "killed")
        click.echo(f"{kills} kills, {runs} runs the same so far", err=True)
    return f"{kills} kills of one rank or all, {runs} runs: the same bytes; at most {repeated} steps repeated"


def last_step(run: Path) -> int:
    """The last one in the curve of a run that was killed."""
    curve = run / "curves/training.tsv"
    rows = curve.read_text().splitlines()[1:] if curve.exists() else []
    return int(rows[-1].split("\t")[0]) if rows else 0


if __name__ == "__main__":
    main()
