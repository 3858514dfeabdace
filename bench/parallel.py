"""``python -m bench.parallel``: do two trainings at once on the same cores take less time than one after the other?

The first steps of the shipped training with two seeds, as ``dvc queue start --jobs 2`` would run them: one after the
other and both at once, in turn, with threads that wait asleep, as the stages have it, and with threads that spin, as
OpenMP has it by default; each counts with its faster round. Wants the features and ``models/pretrained`` of a
`make repro`.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from bench.mirror import train
from stages.__main__ import SHARING
from tests.support.material import write_params

SPINNING = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "30000000000"}  # libgomp's own where there are cores enough


@click.command()
@click.option("--features", type=click.Path(path_type=Path), default="data/features")
@click.option("--pretrained", type=click.Path(path_type=Path), default="models/pretrained")
@click.option("--steps", default=50, show_default=True)
@click.option("--rounds", default=2, show_default=True)
def main(features: Path, pretrained: Path, steps: int, rounds: int) -> None:
    """Time both ways, with both kinds of waiting."""
    train_settings = {"max_steps": steps, "log_every": steps, "eval_every": steps, "save_every": steps}
    settings = {f"train.{name}": value for name, value in train_settings.items()}
    spent: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for waiting, variables in (("asleep", SHARING), ("spinning", SPINNING)):
                os.environ.update(variables)
                for way, workers in (("one after the other", 1), ("both at once", 2)):
                    place = Path(folder, f"{number}-{waiting}-{workers}")
                    spent.setdefault((waiting, way), []).append(run(place, workers, settings, features, pretrained))
                    click.echo(f"{waiting}, {way}: {spent[waiting, way][-1]:.1f} s", err=True)
    for waiting in ("asleep", "spinning"):
        apart, together = (min(spent[waiting, way]) for way in ("one after the other", "both at once"))
        click.echo(f"waiting {waiting}: both at once take {together / apart:.2f} times as long as one after the other")


def run(place: Path, workers: int, settings: dict[str, object], features: Path, pretrained: Path) -> float:
    """Seconds of two trainings, so many of them at once."""

    def one(seed: int) -> None:
        folder = place / str(seed)
        folder.mkdir(parents=True)
        params = write_params(folder / "params.yaml", settings | {"train.seed": seed})
        train(folder, params, features, pretrained, Path())

    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, (1, 2)))
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
