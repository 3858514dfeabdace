"""``python -m stages NAME …`` runs one stage; dvc.yaml says with what."""

import os
import sys
from importlib import import_module

from stages.runtime.command import run

STAGES = ("download", "featurize", "pretrained", "train", "evaluate")

# Threads of a torch operation that wait for one another sleep instead of spinning: where other processes want the cores
# too, such as a second experiment of the queue, spinning makes both several times slower. It changes no result.
SHARING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def share_cores() -> None:
    """Set, before torch is imported, how threads wait; what the user has set stays."""
    for name, value in SHARING.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    share_cores()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in STAGES:
        sys.exit(f"usage: python -m stages {{{','.join(STAGES)}}} …")
    run(lambda: import_module(f"stages.{name}").main, sys.argv[2:])
