"""What a run measures is on its node's metrics endpoint, and stays there while nothing new is
measured.
"""

from __future__ import annotations

import re
import time
import urllib.request

from processes import patience

from versatune_ray.training.loggers import Background, Row


def endpoint() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Values of ``versatune`` metrics on the node's endpoint, by name and our tags."""
    import ray

    with urllib.request.urlopen(
        f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics", timeout=10
    ) as answer:
        lines = re.findall(
            r"^ray_versatune_(\w+)\{(.*)\} (\S+)$", answer.read().decode(), re.MULTILINE
        )
    tags = {
        shown: frozenset(re.findall(r'\b(run|domain)="([^"]*)"', shown)) for _, shown, _ in lines
    }
    return {(name, tags[shown]): float(value) for name, shown, value in lines}


def test_gauges_are_on_the_nodes_endpoint_and_stay(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def begin(self) -> None:
            from versatune_ray.training.gauges import Gauges

            self.logger = Background("gauges", Gauges("seen"), print)

        def measure(self, step: int, values: dict[str, float]) -> None:
            self.logger.put(Row(step, time.time(), values))

    worker = Worker.remote()
    ray.get(worker.begin.remote())
    kinds = ("share", "loss", "learnable_potential", "forgetting_degree", "passes")
    of_domains = {
        f"{kind}/{name}": number + place
        for number, kind in enumerate(kinds)
        for place, name in ((0.25, "law"), (0.75, "code"))
    }
    of_runs = {"tokens_per_second": 1000.0, "step_seconds": 0.5, "mfu": 0.4}
    expected = {
        (kind, frozenset({("run", "seen"), ("domain", name)})): value
        for (kind, name), value in _split(of_domains).items()
    }
    expected |= {(name, frozenset({("run", "seen")})): value for name, value in of_runs.items()}
    ray.get(worker.measure.remote(1, {"train/mfu": 0.1, "share/law": 0.9}))
    ray.get(
        worker.measure.remote(
            2,
            of_domains
            | {f"train/{name}": value for name, value in of_runs.items()}
            | {"train/loss": 3.0},
        )
    )
    until = time.monotonic() + patience(60)
    while (found := endpoint()) != expected and time.monotonic() < until:
        time.sleep(1)
    assert found == expected
    time.sleep(8)  # Ray forgets what is not set for two of its export intervals, 2 s each here
    assert endpoint() == expected


def _split(values: dict[str, float]) -> dict[tuple[str, str], float]:
    return {(key.split("/")[0], key.split("/")[1]): value for key, value in values.items()}
