"""``python -m bench.mirror``: what it costs training that its checkpoints are copied to a DVC remote.

The shipped training, from start to end, with a folder as remote and without one, in turn; each counts with its fastest
round. Wants the features and ``models/pretrained`` of a `make repro`.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from ruamel.yaml import YAML

from tests.support.repository import with_store


@click.command()
@click.option("--params", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--features", type=click.Path(path_type=Path), default="data/features")
@click.option("--pretrained", type=click.Path(path_type=Path), default="models/pretrained")
@click.option("--rounds", default=1)
def main(params: Path, features: Path, pretrained: Path, rounds: int) -> None:
    """Time one training in two ways."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        root, spent = with_store(place / "repository"), {"store": [], None: []}
        for number in range(rounds):
            for mirror in spent:
                run = place / f"{number}-{mirror}"
                run.mkdir()
                own = with_values(params, run, "checkpoints", {"mirror": mirror})
                spent[mirror].append(train(run, own, features, pretrained, root))
                click.echo(f"{'with' if mirror else 'without'} a mirror: {spent[mirror][-1]:.1f} s", err=True)
    ratio = min(spent["store"]) / min(spent[None])
    click.echo(f"a training whose checkpoints are mirrored takes {ratio:.3f} times as long as without")


def with_values(params: Path, run: Path, section: str, values: dict[str, object]) -> Path:
    """params.yaml with these values in one of its sections, in the run's folder."""
    yaml = YAML(typ="safe", pure=True)
    whole = yaml.load(params)
    whole[section] |= values
    yaml.dump(whole, run / "params.yaml")
    return run / "params.yaml"


def train(run: Path, params: Path, features: Path, pretrained: Path, root: Path) -> float:
    """Seconds of ``python -m stages train`` with all outs in the run's folder."""
    outs = ("checkpoints", "trackers", "tuned", "curves", "dropped", "metrics", "details")
    options = {"params": params, "pretrained": pretrained} | {out: run / out for out in outs}
    options |= {split: features / split for split in ("train", "validation")}
    command = [sys.executable, "-m", "stages", "train"]
    command += [word for option, value in options.items() for word in (f"--{option}", str(value))]
    begun = time.perf_counter()
    subprocess.run(command, env=os.environ | {"DVC_ROOT": str(root)}, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
