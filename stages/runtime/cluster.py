"""Clusters of dask or Ray, whose workers do the tasks of ``stages.runtime.pool``.

A worker is not believed unseen: it must have this machine's sources, and its first output is made here again. Results
come back to this machine, so workers need to read what a task reads, and to write nothing.
"""

import functools
import importlib.util
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import resource_tracker
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from stages.runtime.errors import UserError, one_line
from stages.runtime.files import files_digest
from stages.runtime.imports import reached_modules
from stages.runtime.progress import note

CONNECT_SECONDS = 30
DEATHS = 3  # of its workers, after which a task is given up
GONE = "compute.address: the scheduler went away: start it and run the same command again"
PACKAGES = {"dask": "distributed", "ray": "ray"}

Item = TypeVar("Item")
Output = TypeVar("Output")
Answer = tuple[str, str, list[Any]]  # of a worker: which it is, what it lacks, and its outputs where it lacks nothing
Runner = Callable[[bytes, str, str], Answer]


class Cluster(Protocol):
    """What dask and Ray have in common.

    lost: what ``wait`` raises where a task was given up because its workers died.
    """

    lost: tuple[type[Exception], ...]

    def slots(self) -> int:
        """Tasks that run at once, now."""

    def submit(self, *arguments: Any) -> Any:
        """Have the runner called with these."""

    def wait(self, handle: Any) -> Answer:
        """Its answer."""


@contextmanager
def open_cluster(backend: str, address: str | None, processes: int | None) -> Iterator[Cluster]:
    """A cluster by its address, or one of so many processes on this machine, until the block ends.

    Raises UserError where the library is missing or nobody answers at the address.
    """
    if importlib.util.find_spec(PACKAGES[backend]) is None:
        how = "pip install -c constraints.txt -e '.[scale]'"
        raise UserError(f"compute.backend: {backend} is not installed: {how}, or set it to processes")
    with ExitStack() as stack:
        cluster = (open_dask if backend == "dask" else open_ray)(stack, address, processes or os.cpu_count() or 1)
        if not cluster.slots():
            note(f"{address} has no workers yet: waiting for the first")
        yield cluster


def open_dask(stack: ExitStack, address: str | None, processes: int) -> Cluster:
    dask: Any = import_module("dask")  # by name: mypy sees the same whether it is installed or not
    distributed: Any = import_module("distributed")
    place: Any = address
    if address is None:
        resource_tracker.ensure_running()  # on its start it would unblock the signal
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as all inherit it: Ctrl-C is the parent's
        try:
            options = {"n_workers": processes, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
            with dask.config.set({"distributed.scheduler.allowed-failures": DEATHS - 1}):
                place = stack.enter_context(distributed.LocalCluster(**options))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        client = stack.enter_context(distributed.Client(place, timeout=CONNECT_SECONDS))
    except (OSError, ValueError) as error:
        refuse(address, error)
    return DaskCluster(client, make_runner(), (distributed.KilledWorker,), distributed.client.FutureCancelledError)


def open_ray(stack: ExitStack, address: str | None, processes: int) -> Cluster:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports each start to its makers
    ray: Any = import_module("ray")
    handler = signal.getsignal(signal.SIGTERM)  # which init replaces
    local: dict[str, Any] = {"num_cpus": processes, "include_dashboard": False} if address is None else {}
    stack.callback(ray.shutdown)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        refuse(address, error)
    finally:
        signal.signal(signal.SIGTERM, handler)
    run = ray.remote(max_retries=DEATHS - 1)(make_runner())
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
    return RayCluster(ray, run, lost)


def refuse(address: str | None, error: Exception) -> NoReturn:
    place = address or "this machine, where it was to be started"
    raise UserError(f"compute.address: no cluster answers at {place} ({one_line(error)}): start it first") from None


@dataclass
class DaskCluster:
    client: Any
    run: Runner
    lost: tuple[type[Exception], ...]
    cancelled: type[Exception]

    def slots(self) -> int:
        try:
            return sum(self.client.nthreads().values())
        except OSError:
            raise UserError(GONE) from None

    def submit(self, *arguments: Any) -> Any:
        return self.client.submit(self.run, *arguments, pure=False)

    def wait(self, handle: Any) -> Answer:
        try:
            answer: Answer = handle.result()
            return answer
        except self.cancelled:
            raise UserError(GONE) from None


@dataclass
class RayCluster:
    ray: Any
    run: Any
    lost: tuple[type[Exception], ...]

    def slots(self) -> int:
        return int(self.ray.cluster_resources().get("CPU", 0))

    def submit(self, *arguments: Any) -> Any:
        return self.run.remote(*arguments)

    def wait(self, handle: Any) -> Answer:
        try:
            answer: Answer = self.ray.get(handle)
            return answer
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None


@dataclass
class Tasks(Generic[Item, Output]):
    """Tasks of one function on a cluster.

    doubtful: of an output, whether it is made here again; proof: what of an output has to be equal then.
    """

    cluster: Cluster
    function: Callable[[Item], Output]
    doubtful: Callable[[Output], bool]
    proof: Callable[[Output], object]
    proven: set[str] = field(default_factory=set)  # workers

    def submit(self, task: list[Item]) -> Callable[[], list[Output]]:
        """Begin a task; returns what waits for its outputs."""
        function: Any = self.function
        while isinstance(function, functools.partial):
            function = function.func
        module = function.__module__
        handle = self.cluster.submit(pickle.dumps((self.function, task)), module, sources_digest(module))
        return lambda: self.outputs(task, handle)

    def outputs(self, task: list[Item], handle: Any) -> list[Output]:
        """A task's outputs; of one that was given up, each item's alone.

        Raises UserError where an item alone ends its workers, or a worker is not as this machine.
        """
        try:
            worker, lack, outputs = self.cluster.wait(handle)
        except self.cluster.lost:
            if len(task) > 1:
                return [output for item in task for output in self.submit([item])()]
            raise UserError(
                f"{name_of(task[0])} ends every worker that gets it: leave it out, or give workers more memory"
            ) from None
        if lack:
            raise UserError(f"{worker} {lack}: start workers in the project's root, all with one checkout and .venv")
        for item, output in zip(task, outputs, strict=True):
            if worker not in self.proven or self.doubtful(output):
                self.proven.add(worker)
                if self.proof(self.function(item)) != self.proof(output):
                    raise UserError(
                        f"{worker} makes of {name_of(item)} something else than this machine: all workers need the "
                        "same data/ and the same environment"
                    )
        return outputs


def name_of(item: object) -> object:
    """What a person knows an item by."""
    return getattr(item, "id", item)


@functools.cache
def sources_digest(module: str) -> str:
    """The digest of a module of ours and of those that it reaches, as they are when first asked for."""
    return files_digest(reached_modules(module))


def make_runner() -> Runner:
    """What workers run. It is sent whole, being no module's, so that a worker without our modules can say so."""

    def run(payload: bytes, module: str, sources: str) -> Answer:
        import os
        import pickle
        import socket
        import sys
        from pathlib import Path

        here = str(Path.cwd())
        worker = f"worker {os.getpid()} on {socket.gethostname()}"
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            from stages.runtime.cluster import sources_digest

            if sources_digest(module) != sources:
                return worker, f"has another {module}, or imports other modules, in {here}", []
            function, task = pickle.loads(payload)
        except (ImportError, AttributeError) as error:
            return worker, f"finds {error} in {here}", []
        return worker, "", [function(item) for item in task]

    return run
