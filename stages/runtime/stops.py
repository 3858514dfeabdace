"""Ctrl-C and SIGTERM where a stage has processes of its own: they wait while one starts, which leaves Ctrl-C alone."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.context import ForkContext, ForkProcess

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


def leave_interrupts(*_: object) -> None:
    """In a process started with signals deferred: leave Ctrl-C, which a terminal's whole group gets, to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class ForkedProcess(ForkProcess):
    """A fork that is started with signals deferred, by whatever library: else it has the parent's handlers at first."""

    def start(self) -> None:
        with deferred_signals():
            super().start()


class Forking(ForkContext):
    """multiprocessing's fork, of such processes."""

    Process = ForkedProcess
