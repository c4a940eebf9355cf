"""Ray's own metrics: gauges that every node's metrics endpoint shows, for Prometheus and Ray's
dashboard.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Gauge

from versatune_ray.training.loggers import Row

_OF_DOMAINS = {
    "share": "share of the samples, since the last adjustment",
    "loss": "loss that the last adjustment went by, nats per response token (or byte)",
    "learnable_potential": "learnable potential at the last adjustment",
    "forgetting_degree": "forgetting degree at the last adjustment",
    "passes": "passes over the domain's records so far",
}
_OF_RUNS = {
    "tokens_per_second": "tokens per second of all workers, in the last step",
    "step_seconds": "seconds of the last step",
    "mfu": "model FLOPs utilisation of the last step",
}


class Gauges:
    """``loggers.MetricLogger``: ``versatune_share`` and the others, with the tags ``run`` and,
    where there is one, ``domain``.
    """

    def __init__(self, run: str):
        self._run = run
        self._latest: dict[str, float] = {}
        self._domains = {
            kind: Gauge(f"versatune_{kind}", text, ("run", "domain"))
            for kind, text in _OF_DOMAINS.items()
        }
        self._runs = {
            name: Gauge(f"versatune_{name}", text, ("run",)) for name, text in _OF_RUNS.items()
        }

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._latest |= row.values
        # all of them: Ray forgets a gauge that is not set for about 20 s
        for key, value in self._latest.items():
            kind, _, name = key.partition("/")
            if kind in self._domains:
                self._domains[kind].set(value, {"run": self._run, "domain": name})
            elif kind == "train" and name in self._runs:
                self._runs[name].set(value, {"run": self._run})

    def close(self, failed: bool) -> None:
        """The worker's end takes its gauges along."""
