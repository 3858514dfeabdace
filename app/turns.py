"""Whose recording comes next: a few at once, one of each visitor, in the order in which they came."""

import threading
import time
from dataclasses import dataclass, field

from stages.runtime.errors import UserError

AT_ONCE = 2  # what two cores are for
WAITING_OF_ONE = 4  # recordings of one visitor that may wait: several tabs, no more
OWN_COMPUTER = ("", "127.0.0.1", "::1")  # visitors who need no protection from themselves
FIRST_GUESS = 5.0  # seconds that a recording takes, until some have been seen
WEIGHT = 0.2  # of the latest in the running mean of what they took


class QueueFullError(UserError):
    """As many wait as may, or as may of one visitor."""

    def __init__(self) -> None:
        super().__init__("The queue is full: try again in a minute")


@dataclass(eq=False)
class Turn:
    """A place in the queue. client: the address of whose it is; started: None while it waits."""

    client: str
    started: float | None = None


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
            waiting = [turn for turn in self.queue if turn.started is None]
            theirs = sum(turn.client == client for turn in waiting)
            if len(waiting) >= self.max_waiting or (client not in OWN_COMPUTER and theirs >= WAITING_OF_ONE):
                raise QueueFullError
            self.queue.append(turn := Turn(client))
            return turn

    def ahead(self, turn: Turn) -> int:
        """How many come before a turn, which begins where there are none."""
        with self.lock:
            running = [each.client for each in self.queue if each.started is not None]
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

    def leave(self, turn: Turn) -> None:
        with self.lock:
            self.queue.remove(turn)
            if turn.started is not None:
                self.mean += WEIGHT * (time.monotonic() - turn.started - self.mean)
