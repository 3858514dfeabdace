"""Work spread over processes, in order, in bounded memory, and gone at once when it is interrupted."""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker

from threadpoolctl import threadpool_limits

AHEAD = 4  # tasks in flight a process: enough to keep it busy, few enough to bound the results that wait
STOPS = (signal.SIGINT, signal.SIGTERM)


def spread(function: Callable, tasks: Iterable, processes: int | None) -> Iterator:
    """Yield ``function(task)`` for each task, in order.

    processes: how many at once; None is one a core. An exception, Ctrl-C included, drops what has not begun.
    """
    processes = processes or os.cpu_count() or 1
    waiting: deque = deque()
    with ProcessPoolExecutor(processes, initializer=begin_worker) as executor:
        try:
            for task in tasks:
                with deferred():  # submitting starts processes
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Ctrl-C and SIGTERM that come in here are raised at the end; processes started in here have both blocked.

    While a process starts or is cleared away, an exception would leave an orphan that is waited for in vain, or vanish
    in a finalizer. Both measures are needed: a handler is not inherited, and a mask does not hold for other threads.
    """
    came: list[int] = []
    resource_tracker.ensure_running()  # on its start it would unblock the signals
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOPS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)
