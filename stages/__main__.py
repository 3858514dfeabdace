"""``python -m stages NAME …`` runs one stage; dvc.yaml says with what."""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from stages.runtime.command import run

if TYPE_CHECKING:
    from click import Command

STAGES = ("download", "featurize", "pretrained", "train", "evaluate")

# Threads of a torch operation that wait for one another sleep after spinning for some microseconds, in which most waits
# end: where other processes want the cores too, such as a second experiment of the queue, spinning longer makes both
# several times slower. It changes no result.
SHARING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}


def share_cores() -> None:
    """Set, before torch is imported, how threads wait; what the user has set stays."""
    for name, value in SHARING.items():
        os.environ.setdefault(name, value)


def load(stage: str) -> "Command":
    """A stage's command, imported without bitsandbytes.

    peft, which transformers' trainer imports, would import it where it is installed: seconds, for layers in 8 bits that
    no model here has. The optimizer in 8 bits imports it when it is made.
    """
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # Python's way to say that there is none
    command: Command = import_module(f"stages.{stage}").main
    del sys.modules["bitsandbytes"]
    return command


if __name__ == "__main__":
    share_cores()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in STAGES:
        sys.exit(f"usage: python -m stages {{{','.join(STAGES)}}} …")
    run(lambda: load(name), sys.argv[2:])
