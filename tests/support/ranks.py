"""Ranks of one training, as torchrun would begin them, from a process that has imported all that they need."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.distributed import TCPStore

from stages.train import main
from stages.training.ranks import JOINING, joined_ranks
from tests.support.training import arguments

SERVER = multiprocessing.get_context("forkserver")  # forks processes that have not begun to compute
SERVER.set_forkserver_preload(["tests.support.ranks"])


class Group:
    """So many ranks at work on ``task(*given)``, each a process of its own with one thread."""

    def __init__(self, count: int, log: Path, task: Callable, *given: object):
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self.store = TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self.ranks: list[BaseProcess] = []
        with one_thread():
            for rank in range(count):
                env = dict(zip(JOINING, (str(rank), str(count), str(rank), "127.0.0.1", str(port)), strict=True))
                self.ranks.append(SERVER.Process(target=be_rank, args=(env, log, task, *given)))
                self.ranks[-1].start()

    def wait(self) -> list[int | None]:
        """Their exit codes, once all have ended."""
        for rank in self.ranks:
            rank.join()
        return [rank.exitcode for rank in self.ranks]

    def kill(self, *numbers: int) -> None:
        """Kill some of them; then whatever is left, as a launcher does."""
        for number in numbers:
            self.ranks[number].kill()
            self.ranks[number].join()
        for rank in self.ranks:
            rank.kill()
        self.wait()


@contextmanager
def one_thread() -> Iterator[None]:
    """The server starts with the first process, and keeps the environment of then."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def be_rank(env: dict[str, str], log: Path, task: Callable, *given: object) -> None:
    """One rank: its output goes to the end of log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= env | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ.pop("DVC_ROOT", None)
    task(*given)


def train_together(place: Path, name: str, params: Path, count: int = 2) -> Group:
    """Begin, or begin again, a run of ``count`` ranks with outs and a store of its own below place/name."""
    return Group(count, place / name / "log", run_command, arguments(place, name, params))


def run_command(options: list[str]) -> None:
    main.main(options, standalone_mode=False)


def joined(task: Callable, *given: object) -> None:
    """A task for a group that is joined."""
    with joined_ranks():
        task(*given)
