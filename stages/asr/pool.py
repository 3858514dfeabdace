"""Work spread over processes, in order, in bounded memory, and gone at once when it is interrupted."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from threadpoolctl import threadpool_limits

AHEAD = 4  # tasks in flight a process: enough to keep it busy, few enough to bound the results that wait


def spread(function: Callable, tasks: Iterable, processes: int | None) -> Iterator:
    """Yield ``function(task)`` for each task, in order.

    processes: how many at once; None is one a core. An exception, Ctrl-C included, drops what has not begun.
    """
    processes = processes or os.cpu_count() or 1
    waiting: deque = deque()
    with ProcessPoolExecutor(processes, initializer=begin_worker) as executor:
        try:
            for task in tasks:
                waiting.append(executor.submit(function, task))
                if len(waiting) >= processes * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def begin_worker() -> None:
    """One thread a process, and Ctrl-C, which reaches every process of a terminal's group, is left to the parent."""
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
