"""How fast an endpoint may be asked and what that may cost, for all actors that ask it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Prices:
    """Of a million tokens of prompt and of answer."""

    read: float
    written: float


class Limits:
    """Wrapped as one actor that all others ask before each request."""

    def __init__(self, per_minute: float | None, most: float | None, prices: Prices):
        """Nothing is spent yet.

        Args:
            per_minute: requests that begin in a minute, evenly.
            most: what all requests together may cost.
        """
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._most, self._prices = inf if most is None else most, prices
        self._next, self.cost = 0.0, 0.0

    def wait(self, now: float) -> float | None:
        """Seconds until the next request may begin, which is thereby taken, at ``now`` seconds of
        any one clock; None where everything is spent.
        """
        if self.cost >= self._most:
            return None
        begin = max(self._next, now)
        self._next = begin + self._gap
        return begin - now

    def spend(self, read: int, written: int) -> None:
        """Account for a reply, in tokens."""
        self.cost += (read * self._prices.read + written * self._prices.written) / 1e6
