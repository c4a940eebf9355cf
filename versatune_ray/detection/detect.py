"""Detection of one base model or many: each writes, one judge reads them all, and every
distribution is estimated and explained.

What runs when stands in ``schedule``, and what is done for a model in ``rounds``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from versatune_ray.detection.generate import GENERATED, generator, text_row
from versatune_ray.detection.judge import StandingJudge
from versatune_ray.detection.judge_spec import JudgeSpec, judge_spec
from versatune_ray.detection.rounds import Detecting, Failing
from versatune_ray.detection.schedule import Need, room, run
from versatune_ray.detection.summary import summarize
from versatune_ray.detection.texts import Detected, Labelled
from versatune_ray.domains.fingerprint import fingerprint
from versatune_ray.domains.labelled import labelled_sources, labelled_texts
from versatune_ray.domains.records import Rules
from versatune_ray.domains.spec import expand
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import cached
from versatune_ray.runs.folder import say
from versatune_ray.runtime.engine import needs, replicas
from versatune_ray.runtime.models import weights_size
from versatune_ray.settings import Config, Engine, Subject

_PART_ROWS = 128


@dataclass
class Detections:
    """The models of a job: those that were detected, by name, and why others were not."""

    spec: JudgeSpec
    detected: dict[str, Detected] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    reused: bool = True  # nothing had to be generated or judged
    # of all models together, also where they overlap
    seconds: dict[str, float] = field(default_factory=lambda: {"generation": 0.0, "judging": 0.0})


def detect_models(subjects: Sequence[Subject], config: Config, *, gpu: bool) -> Detections:
    """Detect what every model knows. A model that cannot be detected does not stop the others.

    Raises:
        UserError: the judge cannot be used, the disk is full, or there is one model only and it
            cannot be detected.
    """
    settings, cache = config.detection, config.cache_folder
    result = Detections(judge_spec(config, gpu=gpu))
    spec = result.spec
    spec.check_labels()  # before anything is spent
    alone = len(subjects) == 1
    for subject in subjects:
        name = subject.name or Path(subject.path).name
        with Failing(name, result, alone):
            source = generator(name, subject.path, subject.engine, config, gpu=gpu)
            result.detected[name] = Detected(source, spec.folder(cache, source.folder.name))
    labelled = _labelled(config, spec)
    if settings.estimate == "corrected" and labelled is None:
        raise UserError(
            "detection.estimate: corrected needs at least two labelled texts of every domain "
            "(domains.NAME.labelled, or records)"
        )
    names = list(result.detected)
    writers, together = _room(result, config, gpu=gpu)
    judge = StandingJudge(spec)
    work = Detecting(result, settings, judge, labelled, alone, together=together)
    try:
        run(names, work, writers=writers, together=together)
    finally:
        work.stop()
    _account(result)
    for name, detected in list(result.detected.items()):
        with Failing(name, result, alone):
            detected.distribution = summarize(detected, spec, settings, labelled)
    listed = [subject.name or Path(subject.path).name for subject in subjects]
    result.failed = {name: result.failed[name] for name in listed if name in result.failed}
    return result


def _account(result: Detections) -> None:
    """Of several names for one model the first did the work, whichever came first."""
    first: dict[Path, Detected] = {}
    for detected in result.detected.values():
        one = first.setdefault(detected.judged, detected)
        if one is not detected:
            for what, count in detected.work.items():
                one.work[what] += count
                detected.work[what] = 0


def _room(result: Detections, config: Config, *, gpu: bool) -> tuple[int, bool]:
    """How many models write at once, and whether the judge stays up beside them."""
    import ray

    judge, settings = config.detection.judge, config.detection
    asked = _need(result.spec.model, judge.engine, gpu)
    if judge.kind == "http":
        asked = Need({"CPU": 0.5}, judge.http.actors)
    models = [_need(one.source.path, one.source.engine, gpu) for one in result.detected.values()]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    writers, together = room(nodes, asked, models)
    if settings.concurrency is None:
        # engines on CPUs share the memory's bandwidth
        return (writers if gpu else 1), together
    grows = gpu and not any(node.get("GPU") for node in nodes)  # an autoscaler has yet to begin
    return settings.concurrency, together or grows


def _need(model: str, engine: Engine, gpu: bool) -> Need:
    each = needs(engine, gpu)
    if not gpu:  # weights in float32, and they are stored in half of that
        each["memory"] = 2 * weights_size(model) + (1 + engine.kv_cache_gib) * 2**30
    return Need(each, replicas(engine)[1])


def _labelled(config: Config, spec: JudgeSpec) -> Labelled | None:
    """Held-out records as texts for the judge; None where it is not to be measured."""
    limit = config.detection.judge.records
    if not limit:
        return None
    without = [name for name, domain in config.domains.items() if not labelled_sources(domain)[1]]
    if without:
        say(
            "detection",
            f"the judge is not measured: no labelled texts or records of {', '.join(without)}",
        )
        return None
    inputs = []  # in domain order, which the truth is told in
    for name, domain in config.domains.items():
        side, specs = labelled_sources(domain)
        listed = [
            source
            for spec in specs
            for source in expand(spec, f"domains.{name}.{side}", texts=side == "labelled")
        ]
        rules = Rules(domain.fields, domain.allowed, config.data.preference)
        said = [] if side == "labelled" or rules == Rules() else [asdict(rules)]
        inputs.append([name, side, fingerprint(listed, config.data.fingerprint), *said])
    parts = {"inputs": inputs, "limit": limit, "fraction": config.data.validation_fraction}

    def build(work: Path) -> None:
        texts = labelled_texts(config.domains, config.data, limit)
        rows = [
            text_row(0, text, 0, False) | {"truth": domain}
            for domain, name in enumerate(texts)
            for text in texts[name]
        ]
        schema = pa.schema([*GENERATED.items(), ("truth", pa.int64())])
        for start in range(0, len(rows), _PART_ROWS):
            numbered = [
                row | {"id": number}
                for number, row in enumerate(rows[start : start + _PART_ROWS], start)
            ]
            pyarrow.parquet.write_table(
                pa.Table.from_pylist(numbered, schema), work / f"{start:06}.parquet"
            )
        np.save(work / "truth.npy", np.array([row["truth"] for row in rows], dtype=np.int64))

    folder, _ = cached(config.cache_folder, "labelled", parts, build)
    truth = np.load(folder / "truth.npy")
    few = [
        name
        for name, count in zip(
            config.domains, np.bincount(truth, minlength=len(config.domains)), strict=True
        )
        if count < 2
    ]
    if few:
        say(
            "detection",
            f"the judge is not measured: fewer than two labelled texts of {', '.join(few)}",
        )
        return None
    return Labelled(folder, truth, spec.folder(config.cache_folder, folder.name))
