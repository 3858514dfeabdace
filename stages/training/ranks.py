"""Several processes that train one run: how they begin, what they tell one another, and how they end together.

For transformers each is a training of its own, in one process on one device; what makes them one are sums over all of
them, of the label tokens, the gradient and the loss of a step, and the decisions of rank 0. It alone holds the run's
lock, reads the checkpoints' store, and writes. They are begun here (``run_ranks``), or by `torchrun`.
"""

import contextlib
import errno
import functools
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Literal, TypeVar

import torch
from torch import distributed

from stages.asr.device import best_device
from stages.runtime.errors import UserError, one_line

JOINING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process
LAUNCHER = "VISKA_LAUNCHER"  # in a rank's environment: its descriptor of the socket to what began it
PATIENCE = timedelta(days=7)  # rank 0 may wait for a lock or judge weights for hours; the dead are noticed otherwise
BUCKET = 2**24  # weights whose gradients are added up at once: enough to be quick, few beside a model
POLL_SECONDS = 0.05
GRACE_SECONDS = 5  # in which the rank that another one's error comes from is seen to have ended, too
REPORT_BYTES = 2**16  # of a rank's error at most, which nobody reads before the rank has ended
TO_MEND = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM}  # a full disk or a lack of permission is the user's

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """The processes that train one run, as the one with the number ``rank`` sees them; without others by default.

    Where there are others, each has to call the same methods in the same order.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """One of this rank's own, so that no two draw the same dropout; rank 0's is the run's."""
        return random.Random(f"{seed} {self.rank}").getrandbits(32) if self.rank else seed

    def share(self, value: Item) -> Item:
        """What rank 0 has, in every rank."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Item) -> list[Item]:
        """What each rank has, by rank, in every rank."""
        if self.count == 1:
            return [value]
        values = [value] * self.count
        distributed.all_gather_object(values, value)
        return values

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that are this rank's to work on."""
        return items[self.rank :: self.count]

    def merge(self, results: dict[int, Item]) -> dict[int, Item]:
        """What the ranks found out about numbered things, in every rank, by number."""
        return dict(sorted(pair for one in self.gather(results) for pair in one.items()))

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the ranks, in every rank."""
        if self.count > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give each weight the sum of its gradients over the ranks; one without any has none, as in one process.

        In a fixed order and fixed buckets, unlike DistributedDataParallel's, which follow the first step since a start:
        then a resumed run adds up as the one that nobody stopped. A weight may lack a gradient in some ranks, because
        a layer was dropped there, or because a step had no clip for the rank.
        """
        if self.count == 1:
            return
        weights = [weight for weight in parameters if weight.requires_grad]
        found = self.sum(torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32))
        gradients = []
        for weight, ranks in zip(weights, found.tolist(), strict=True):
            if ranks:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                gradients.append(weight.grad)
        for bucket in buckets(gradients, BUCKET):
            total = torch.cat([gradient.flatten() for gradient in bucket])
            distributed.all_reduce(total)
            for gradient, part in zip(bucket, torch.split(total, [one.numel() for one in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


def buckets(tensors: Iterable[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Tensors in their order, as lists of at most ``size`` elements together, or of one tensor that has more."""
    bucket: list[torch.Tensor] = []
    filled = 0
    for tensor in tensors:
        if bucket and filled + tensor.numel() > size:
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += tensor.numel()
    if bucket:
        yield bucket


def current_ranks() -> Ranks:
    """Those that this process has joined; itself alone where it has joined none."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()


def ranks_to_start(gpus: int | Literal["auto"]) -> int:
    """How many processes are to be begun for ``compute.gpus``; 0 where this one trains, alone or as a rank.

    Raises UserError where there are fewer GPUs.
    """
    if is_rank():
        return 0
    device = best_device()
    available = torch.cuda.device_count() if device.type == "cuda" else 1
    wanted = available if gpus == "auto" else gpus
    if wanted > available and device.type == "cuda":
        raise UserError(f"compute.gpus is {wanted}, and this machine has {available}: lower it, or set it to auto")
    if wanted > 1 and device.type not in ("cuda", "cpu"):
        raise UserError(f"compute.gpus is {wanted}, and several processes cannot share {device.type}: set it to 1")
    return wanted if wanted > 1 else 0


def is_rank() -> bool:
    """Whether this process was begun as a rank, by us or by torchrun, and has not joined the others yet."""
    return all(name in os.environ for name in JOINING)


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Be one of the ranks to the end of the block, where this process was begun as one; else train alone.

    A rank that ``run_ranks`` began ends with it, whatever ends that, and leaves its errors to it to show.
    """
    if not is_rank():
        yield Ranks()
        return
    launcher = hear_launcher()
    try:
        join()
        yield current_ranks()
    except Exception as error:
        if launcher is None:
            raise
        launcher.sendall(Report.of(error).packed())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # at its end, Python would wait for ranks that wait for this one
    if distributed.is_initialized():
        distributed.destroy_process_group()


def join() -> None:
    """Make one group with the other ranks, on a device of this one's own; waits for them."""
    if int(os.environ["WORLD_SIZE"]) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(int(os.environ["LOCAL_RANK"]))  # read when CUDA starts
        backend = "cpu:gloo,cuda:nccl" if best_device().type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    for name in (*JOINING, "LOCAL_WORLD_SIZE"):  # else accelerate would make ranks of its trainers, and so would
        os.environ.pop(name, None)  # programs that are begun from here


def own_gpu(local: int) -> str:
    """The GPU of the rank with this number on its machine, as CUDA_VISIBLE_DEVICES wants it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[local] if visible and local < len(visible.split(",")) else str(local)


def hear_launcher() -> socket.socket | None:
    """The connection to the process that began this rank; ends this one once that is gone. None under torchrun."""
    if LAUNCHER not in os.environ:
        return None
    launcher = socket.socket(fileno=int(os.environ.pop(LAUNCHER)))

    def wait() -> None:
        launcher.recv(1)  # nothing ever comes
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    return launcher


@dataclass(frozen=True)
class Report:
    """What ended a rank. error: one that a person can mend; text: any other, with its traceback. when: in seconds."""

    when: float
    error: Exception | None
    text: str
    summary: str

    @staticmethod
    def of(error: Exception) -> "Report":
        mendable = isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in TO_MEND)
        text = "".join(traceback.format_exception(error))[-REPORT_BYTES // 8 :]
        summary = f"{type(error).__name__}: {one_line(error)}"[:500]
        return Report(time.monotonic(), error if mendable else None, text, summary)

    def packed(self) -> bytes:
        return pickle.dumps(self)


@dataclass
class RankProcess:
    """A rank that this process began."""

    rank: int
    count: int
    process: "subprocess.Popen[bytes]"
    connection: socket.socket
    stderr: IO[bytes] | None  # None: ours

    @functools.cached_property
    def report(self) -> Report | None:
        """What it said of its error, once it has ended; None where it was killed, or ended before it could."""
        self.connection.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            if data := self.connection.recv(REPORT_BYTES):
                report: Report = pickle.loads(data)
                return report
        return None

    def is_culprit(self) -> bool:
        """Whether what ended it cannot have been the end of another rank."""
        return self.report is None or self.report.error is not None

    def explain(self) -> Exception:
        """What ended it, for a person; an error of our own is shown here, with its traceback."""
        name, status = f"rank {self.rank} of {self.count}", self.process.returncode
        if self.report and self.report.error:
            return self.report.error
        if self.report:
            print(self.report.text, end="", file=sys.stderr, flush=True)
            return UserError(f"{name} failed: {self.report.summary}")
        if status < 0:
            killed = f"was killed ({signal.Signals(-status).name})"
            return UserError(f"{name} {killed}: run the same command again to go on from the last checkpoint")
        last = self.last_line()
        return UserError(f"{name} ended with status {status}{f': {last}' if last else ''}")

    def last_line(self) -> str:
        """Of what it wrote to stderr."""
        if self.stderr is None:
            return ""
        self.stderr.seek(0)
        return (self.stderr.read().decode(errors="replace").strip().splitlines() or [""])[-1]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        if self.stderr:
            self.stderr.close()


def run_ranks(count: int, command: Sequence[str] = tuple(sys.orig_argv)) -> None:
    """Run this very command as ``count`` ranks on this machine, and wait for them; ends all of them in any case.

    Only rank 0 writes to the terminal. Raises the error of the first rank that failed: what it raised itself where that
    is a person's to mend, or a UserError. They are in sessions of their own, so that Ctrl-C reaches this process alone.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = distributed.TCPStore(  # where the ranks find one another; here, so that its port is taken once and for all
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    processes: list[RankProcess] = []
    try:
        for rank in range(count):
            processes.append(start_rank(rank, count, port, command))
        if failed := wait_for(processes):
            raise failed.explain()
    finally:
        for process in processes:
            process.end()
        del store


def start_rank(rank: int, count: int, port: int, command: Sequence[str]) -> RankProcess:
    ours, theirs = socket.socketpair()
    stderr = tempfile.TemporaryFile() if rank else None  # noqa: SIM115  # closed when the rank is ended
    env = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(torch.get_num_threads() // count, 1))),
        LAUNCHER: str(theirs.fileno()),
    }
    if sys.platform == "linux":
        env |= {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}  # nobody else is to hear them
    with theirs:
        process = subprocess.Popen(
            command,
            env=os.environ | env,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdout=subprocess.DEVNULL if rank else None,
            stderr=stderr,
        )
    return RankProcess(rank, count, process, ours, stderr)


def wait_for(processes: Sequence[RankProcess]) -> RankProcess | None:
    """Wait until every rank has ended well, or one has failed; returns the one whose failure came first.

    A rank whose partner is gone fails as well, and may be seen to have ended before the partner is.
    """
    deadline = float("inf")
    while True:
        running = [one for one in processes if one.process.poll() is None]
        failed = [one for one in processes if one.process.returncode]
        culprits = [one for one in failed if one.is_culprit()]
        if culprits:
            return culprits[0]
        if failed:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if not running or time.monotonic() > deadline:
            return min(failed, key=lambda one: one.report.when if one.report else 0.0, default=None)
        time.sleep(POLL_SECONDS)
