"""Whose recording comes next: a few at once, one of each visitor, in the order in which they came; and who stopped."""

import threading
import time
from dataclasses import dataclass, field

from stages.runtime.errors import UserError

AT_ONCE = 2  # what two cores are for
WAITING_OF_ONE = 4  # recordings of one visitor that may wait: several tabs, no more
OWN_COMPUTER = ("", "127.0.0.1", "::1")  # visitors who need no protection from themselves
MAX_PAGES = 1000  # whose latest order is known: more than can wait, and a bound for what forged calls leave
FIRST_GUESS = 5.0  # seconds that a recording takes, until some have been seen
WEIGHT = 0.2  # of the latest in the running mean of what they took


class QueueFullError(UserError):
    """As many wait as may, or as may of one visitor."""

    def __init__(self) -> None:
        super().__init__("The queue is full: try again in a minute")


@dataclass(eq=False)
class Turn:
    """A place in the queue.

    client: the address of whose it is. started: None while it waits. abandoned: nobody wants it any more, and what is
    left of it waits for another host; it counts as waiting, so that there are not many.
    """

    client: str
    started: float | None = None
    abandoned: bool = False


@dataclass
class Turns:
    """The queue; safe to use from several threads."""

    max_waiting: int
    queue: list[Turn] = field(default_factory=list)
    mean: float = FIRST_GUESS
    lock: threading.Lock = field(default_factory=threading.Lock)

    def join(self, client: str) -> Turn:
        """Raises QueueFullError."""
        with self.lock:
            waiting = [turn for turn in self.queue if turn.started is None or turn.abandoned]
            theirs = sum(turn.client == client for turn in waiting)
            if len(waiting) >= self.max_waiting or (client not in OWN_COMPUTER and theirs >= WAITING_OF_ONE):
                raise QueueFullError
            self.queue.append(turn := Turn(client))
            return turn

    def ahead(self, turn: Turn) -> int:
        """How many come before a turn, which begins where there are none."""
        with self.lock:
            running = [each.client for each in self.queue if each.started is not None and not each.abandoned]
            waiting = [each for each in self.queue if each.started is None]
            if turn.started is None and len(running) < AT_ONCE:
                free = (each for each in waiting if each.client in OWN_COMPUTER or each.client not in running)
                if next(free, None) is turn:
                    turn.started = time.monotonic()
            return 0 if turn.started is not None else waiting.index(turn) + 1

    def waiting(self) -> int:
        """How many wait."""
        with self.lock:
            return sum(turn.started is None for turn in self.queue)

    def seconds(self, ahead: int) -> float:
        """About how long those who come before will take, by what the latest took."""
        return ahead * self.mean / AT_ONCE

    def abandon(self, turn: Turn) -> None:
        """Let the next one begin, before ``leave``."""
        with self.lock:
            turn.abandoned = turn.started is not None

    def leave(self, turn: Turn) -> None:
        with self.lock:
            self.queue.remove(turn)
            if turn.started is not None and not turn.abandoned:
                self.mean += WEIGHT * (time.monotonic() - turn.started - self.mean)


@dataclass(eq=False)
class Order:
    """What a page asked for. ended: it was stopped, or another one has come in its place."""

    taken: bool = False
    ended: bool = False


@dataclass
class Orders:
    """The latest order of each page; safe to use from several threads.

    gradio's own cancelling names a page's listener, not what it runs: where it comes late, it ends what comes next.
    """

    latest: dict[str, Order] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def place(self, page: str) -> None:
        """A new one, which ends the one before."""
        with self.lock:
            if before := self.latest.pop(page, None):
                before.ended = True
            self.latest[page] = Order()
            if len(self.latest) > MAX_PAGES:
                del self.latest[next(iter(self.latest))]

    def take(self, page: str) -> Order | None:
        """The one to carry out, by whoever comes first; None where there is none."""
        with self.lock:
            order = self.latest.get(page)
            if order is None or order.taken:
                return None
            order.taken = True
            return order

    def stop(self, page: str) -> None:
        with self.lock:
            if order := self.latest.get(page):
                order.ended = True

    def is_latest(self, page: str, order: Order) -> bool:
        """Whether no other one has come in its place."""
        with self.lock:
            return self.latest.get(page) is order
