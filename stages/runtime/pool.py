"""Work spread over processes, here or on a cluster, in order, in bounded memory, and gone at once when interrupted."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from threadpoolctl import threadpool_limits

from stages.runtime.cluster import Tasks, open_cluster
from stages.runtime.errors import UserError
from stages.runtime.stops import deferred_signals, leave_interrupts

TASK_SIZE = 32  # items handed to a process at once: enough to hide what that costs
TASKS_AHEAD = 4  # tasks in flight a process: enough to keep it busy, few enough to bound the results that wait

Item = TypeVar("Item")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Workers:
    """Who works: processes of this machine, so many at once, or a cluster of backend, ``dask`` or ``ray``.

    processes: None is one a core. address: of the cluster; None starts one of so many processes here.
    """

    processes: int | None = None
    backend: str = "processes"
    address: str | None = None


def parallel_map(
    function: Callable[[Item], Output],
    items: Iterable[Item],
    workers: Workers | int | None,
    doubtful: Callable[[Output], bool] = lambda output: False,
    proof: Callable[[Output], object] = lambda output: output,
) -> Iterator[Output]:
    """Yield ``function(item)`` for each item, in order.

    workers: a number is so many processes here. doubtful: which of a cluster's outputs are made here again; proof:
    what of them has to be equal then. An exception, Ctrl-C included, drops what has not begun. Raises UserError where
    a process was killed, a cluster cannot be had or its workers are not as this machine.
    """
    if not isinstance(workers, Workers):
        workers = Workers(workers)
    if workers.backend != "processes":
        with open_cluster(workers.backend, workers.address, workers.processes) as cluster:
            yield from in_order(Tasks(cluster, function, doubtful, proof).submit, items, cluster.slots)
        return
    processes = workers.processes or os.cpu_count() or 1
    with ProcessPoolExecutor(processes, initializer=init_worker) as executor:

        def submit(task: list[Item]) -> Callable[[], list[Output]]:
            with deferred_signals():  # submitting starts processes
                return executor.submit(map_task, function, task).result

        try:
            yield from in_order(submit, items, lambda: processes)
        except BrokenProcessPool:
            raise UserError(
                "one of the processes that make clips was killed, as happens where memory runs out: lower"
                " compute.processes"
            ) from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def in_order(
    submit: Callable[[list[Item]], Callable[[], list[Output]]], items: Iterable[Item], slots: Callable[[], int]
) -> Iterator[Output]:
    """The outputs of items in their order, with a few tasks in flight for each slot."""
    rest = iter(items)
    waiting: deque[Callable[[], list[Output]]] = deque()
    while task := list(islice(rest, TASK_SIZE)):
        waiting.append(submit(task))
        if len(waiting) >= max(slots(), 1) * TASKS_AHEAD:
            yield from waiting.popleft()()
    while waiting:
        yield from waiting.popleft()()


def map_task(function: Callable[[Item], Output], task: list[Item]) -> list[Output]:
    return [function(item) for item in task]


def init_worker() -> None:
    """One thread a process, and Ctrl-C is left to the parent."""
    threadpool_limits(1)
    leave_interrupts()
