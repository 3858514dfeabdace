"""``python -m bench.growth``: featurize on a short and a long list of clips, and on one that has grown.

Each clip is half a second of noise of its own, as cheap as clips get, so that what a clip costs beyond its features
shows. Each run is the stage as DVC runs it: its memory and its workers' is sampled; its pace is that from the first
shard to the last one that was written while as much was being made ahead of it as ever. Each is done several times in
turn, the short one more often, since it is over in seconds, and of each figure the median counts.
"""

import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import psutil
import soundfile

from stages.asr.clips import Clip, write_clips
from stages.asr.mel import SAMPLE_RATE
from stages.runtime.pool import TASK_SIZE, TASKS_AHEAD
from stages.runtime.progress import ProgressBar
from tests.support.material import ROOT, write_params

PER_SHARD = 100
PROCESSES = 2
AHEAD = PROCESSES * TASKS_AHEAD * TASK_SIZE  # clips; the last ones were made before the shards that they come after
SHORT_RUNS = 5
SAMPLE_EVERY = 0.05  # seconds


class Figures(NamedTuple):
    """Of one run. pace: clips/s; parent, worker: MB at their peak; seconds: from start to end."""

    pace: float
    parent: float
    worker: float
    seconds: float


@click.command()
@click.option("--short", default=2_000, help="Clips.")
@click.option("--long", default=50_000, help="Clips.")
@click.option("--rounds", default=3)
@click.option("--folder", type=click.Path(path_type=Path), default=".", help="On the disk to measure on.")
def main(short: int, long: int, rounds: int, folder: Path) -> None:
    """Time the stage, and sample its memory."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name).resolve()
        write_params(place / "params.yaml", {"featurize.clips_per_shard": PER_SHARD, "compute.processes": PROCESSES})
        make_clips(place, {"short": short, "long": long})
        lines = {f"{short:,} clips": ("short", "stores/a"), f"{long:,} clips": ("long", "stores/b")}
        lines |= {f"{long:,}, {short:,} kept": ("long", "stores/a"), f"{long:,}, all kept": ("long", "stores/b")}
        found: dict[str, list[Figures]] = {line: [] for line in lines}
        for _ in range(rounds):
            for line, (clips, kept) in lines.items():
                found[line].append(featurize(place, clips, kept))
            for again in range(SHORT_RUNS - 1):
                found[next(iter(lines))].append(featurize(place, "short", f"stores/again{again}"))
            shutil.rmtree(place / "stores")
    click.echo(f"{'':<24}{'clips/s':>9}{'parent MB':>11}{'worker MB':>11}{'s':>8}")
    for line, runs in found.items():
        pace, parent, worker, seconds = map(statistics.median, zip(*runs, strict=True))
        click.echo(f"{line:<24}{pace:>9.0f}{parent:>11.0f}{worker:>11.0f}{seconds:>8.1f}")


def make_clips(place: Path, lists: dict[str, int]) -> None:
    """Write lists of clips; each has the beginning of the longest one's."""
    rng = np.random.default_rng(1)
    (place / "audio").mkdir()
    clips = []
    for number in ProgressBar(range(max(lists.values())), desc="make", unit="clip"):
        clip = Clip(f"c{number:07}", f"c{number:07}.wav", f"mening nummer {number} av alla", f"voice{number % 500}")
        noise = rng.integers(-3000, 3000, SAMPLE_RATE // 2, np.int16)
        soundfile.write(place / "audio" / clip.audio, noise, SAMPLE_RATE)
        clips.append(clip)
    for name, length in lists.items():
        (place / name).mkdir()
        (place / name / "audio").symlink_to(place / "audio")
        write_clips(place / name, clips[:length])


def featurize(place: Path, clips: str, kept: str) -> Figures:
    """Run the stage on a list of clips, with a store of features."""
    options = {"params": "params.yaml", "clips": clips, "kept": kept, "shards": "shards", "details": "details.json"}
    command = [sys.executable, "-m", "stages", "featurize", *(w for key in options for w in (f"--{key}", options[key]))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(place)}
    start = time.perf_counter()
    stage = psutil.Popen(command, cwd=place, env=environment)
    parent = worker = 0
    while stage.poll() is None:
        try:
            parent = max(parent, stage.memory_info().rss)
            worker = max([worker, *(child.memory_info().rss for child in stage.children())])
        except psutil.Error:
            pass  # it has ended
        time.sleep(SAMPLE_EVERY)
    seconds = time.perf_counter() - start
    if stage.returncode:
        raise click.ClickException("the stage failed")
    written = sorted(path.stat().st_mtime for path in (place / "shards").glob("*.zip"))
    last = len(written) - 1 - math.ceil(AHEAD / PER_SHARD)
    return Figures(PER_SHARD * last / (written[last] - written[0]), parent / 1e6, worker / 1e6, seconds)


if __name__ == "__main__":
    main()
