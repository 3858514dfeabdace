"""``python -m stages NAME …`` runs one stage; dvc.yaml says with what."""

import sys
from importlib import import_module

from stages.runtime.command import run

STAGES = ("download", "featurize", "pretrained", "train", "evaluate")

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in STAGES:
        sys.exit(f"usage: python -m stages {{{','.join(STAGES)}}} …")
    run(lambda: import_module(f"stages.{name}").main, sys.argv[2:])
