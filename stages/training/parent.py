"""Notices that the program which started this one is gone, because a killed `dvc` leaves its stage running."""

import os

import psutil

from stages.runtime.errors import UserError

SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}


class Parent:
    """The process that runs this one under DVC, and the shell between the two; nothing outside of DVC.

    launched: another process stands between, which began this one as one of several ranks.
    """

    def __init__(self, launched: bool = False) -> None:
        self.watched: list[psutil.Process] = []
        process = psutil.Process().parent() if "DVC_ROOT" in os.environ else None
        if launched and process:
            self.watched.append(process)
            process = process.parent()
        while process is not None:
            self.watched.append(process)
            process = process.parent() if process.name() in SHELLS else None

    def check(self) -> None:
        """Raise UserError where one of them has ended: its successor may be at work on the same outs."""
        for process in self.watched:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise UserError(f"process {process.pid} (dvc), which started this, is gone; stopped")
