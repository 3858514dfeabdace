"""Work spread over processes, in order, in bounded memory, and gone at once when it is interrupted."""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import resource_tracker
from typing import TypeVar

from threadpoolctl import threadpool_limits

TASK_SIZE = 32  # items handed to a process at once: enough to hide what that costs
TASKS_AHEAD = 4  # tasks in flight a process: enough to keep it busy, few enough to bound the results that wait
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Item = TypeVar("Item")
Output = TypeVar("Output")


def parallel_map(function: Callable[[Item], Output], items: Iterable[Item], processes: int | None) -> Iterator[Output]:
    """Yield ``function(item)`` for each item, in order.

    processes: how many at once; None is one a core. An exception, Ctrl-C included, drops what has not begun.
    """
    processes = processes or os.cpu_count() or 1
    rest = iter(items)
    waiting: deque[Future[list[Output]]] = deque()
    with ProcessPoolExecutor(processes, initializer=init_worker) as executor:
        try:
            while task := list(islice(rest, TASK_SIZE)):
                with deferred_signals():  # submitting starts processes
                    waiting.append(executor.submit(map_task, function, task))
                if len(waiting) >= processes * TASKS_AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def map_task(function: Callable[[Item], Output], task: list[Item]) -> list[Output]:
    return [function(item) for item in task]


def init_worker() -> None:
    """One thread a process, and Ctrl-C, which reaches every process of a terminal's group, is left to the parent."""
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM that come in here are raised at the end; processes started in here have both blocked.

    While a process starts or is cleared away, an exception would leave an orphan that is waited for in vain, or vanish
    in a finalizer. Both measures are needed: a handler is not inherited, and a mask does not hold for other threads.
    """
    came: list[int] = []
    resource_tracker.ensure_running()  # on its start it would unblock the signals
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOP_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
