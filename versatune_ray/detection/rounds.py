"""What is done for every model, in whichever thread: it writes, the judge reads, and its intervals
say whether it has to write more.

Sequences and answers are kept as they come in stores that grow, so a job that is killed, repeated
or enlarged does only what is missing. With a tolerance this happens in rounds: a pilot, then as
many sequences as the widest interval asks for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from versatune_ray.detection.distribution import estimate, half_width, samples_needed
from versatune_ray.detection.generate import generate, writer
from versatune_ray.detection.judge import StandingJudge, judge
from versatune_ray.detection.schedule import Written
from versatune_ray.detection.summary import judged_sequences
from versatune_ray.detection.texts import Detected, Labelled
from versatune_ray.errors import is_disk_full, one_line
from versatune_ray.runs.folder import say
from versatune_ray.runtime.pool import Pool
from versatune_ray.settings import Detection

_PILOT = 400  # sequences of the first round
_MARGIN = 1.05  # a bare forecast of the sequences needed falls short half of the time


class Result(Protocol):
    """What is known of the models of a job: see ``detect.Detections``."""

    detected: dict[str, Detected]
    failed: dict[str, str]
    reused: bool
    seconds: dict[str, float]


class Stopped(BaseException):
    """The job ends before its time; no model is to blame."""


class Detecting:
    """``schedule.Work`` on the models of ``result``."""

    def __init__(
        self,
        result: Result,
        settings: Detection,
        judge: StandingJudge,
        labelled: Labelled | None,
        alone: bool,
        *,
        together: bool,
    ):
        self._result, self._settings, self._judge = result, settings, judge
        self._labelled, self._alone, self._together = labelled, alone, together
        self._cap = settings.samples * settings.repeats
        first = self._cap if settings.tolerance is None else min(self._cap, _PILOT)
        self._wanted = dict.fromkeys(result.detected, first)
        self._places = {name: place for place, name in enumerate(result.detected, 1)}
        self._engines: dict[str, Pool] = {}
        self._lock = threading.Lock()  # of what several threads add to
        self._stopped = threading.Event()

    def write(self, model: str) -> Written:
        detected, count, began = self._result.detected[model], self._wanted[model], time.monotonic()
        if self._together:
            self._judge.checked()  # or its mistake would be each model's
        with Failing(model, self._result, self._alone, self._stopped):
            engines = self._engines.get(model)
            if engines is None:
                engines = self._engines[model] = writer(detected.source, gpu=self._judge.spec.gpu)
                if self._together:
                    # its place is taken before engines take what is left
                    engines.first = self._judge.start
            made = generate(
                detected.source, count, gpu=self._judge.spec.gpu, engines=engines, on=self._check
            )
            detected.count, detected.rounds = count, detected.rounds + 1
            detected.work["generated"] += made
            among = len(self._places)
            which = f" ({self._places[model]} of {among})" if among > 1 else ""
            say(
                "detection",
                f"{model}{which}: {made:,} sequences generated, {count - made:,} were there before",
            )
            self._took("generation", began, made > 0)
            return Written.UNSURE if count < self._cap else Written.ALL
        return Written.LOST

    def let_go(self, model: str) -> None:
        engines = self._engines.pop(model, None)
        if engines is not None:
            engines.close()

    def read(self, models: Sequence[str]) -> None:
        excluded, began = self._settings.exclude_degenerate, time.monotonic()
        found = [self._result.detected[name] for name in models]
        texts = [one.texts(exclude_degenerate=excluded) for one in found]
        if self._labelled is not None:
            texts.append(self._labelled.texts)
        name = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
        counts = judge(self._judge.spec, texts, self._judge, name=name, on=self._check)
        for one, count in zip(found, counts, strict=False):
            one.work["judged"] += count
        self._took("judging", began, any(counts))
        if models or any(counts):
            labelled = self._labelled is not None and counts[-1]
            what = f"{name}: " if models else ""
            say(
                "detection",
                f"{what}{sum(counts):,} texts judged"
                + (", labelled ones among them" if labelled else ""),
            )

    def rest(self) -> None:
        self._judge.close(for_good=self._stopped.is_set())

    def goes_on(self, model: str) -> bool:
        with Failing(model, self._result, self._alone, self._stopped):
            wanted = self._needed(self._result.detected[model])
            more = wanted > self._wanted[model]
            self._wanted[model] = wanted
            return more
        return False

    def stop(self) -> None:
        self._stopped.set()
        for engines in list(self._engines.values()):
            engines.close()
        self._judge.close()

    def _check(self, done: int) -> None:
        if self._stopped.is_set():
            raise Stopped

    def _took(self, what: str, began: float, worked: bool) -> None:
        with self._lock:
            self._result.seconds[what] += time.monotonic() - began
            self._result.reused = self._result.reused and not worked

    def _needed(self, detected: Detected) -> int:
        """Sequences needed for the tolerance, at most N × T; those that are there, if it is reached
        or not asked for.
        """
        settings = self._settings
        if settings.tolerance is None:
            return detected.count
        texts = detected.texts(exclude_degenerate=settings.exclude_degenerate)
        sequences = judged_sequences(self._judge.spec, texts)
        kept = sequences.kept
        if kept.sum() < 2:
            return detected.count  # told by the summary
        shares = sequences.shares[kept]
        so_far = estimate(shares, sequences.ids[kept] % settings.repeats, settings.repeats)
        reached = half_width(so_far)
        say(
            "detection",
            f"{detected.source.name}: {detected.count:,} sequences, widest interval "
            f"± {100 * reached:.2f} % of {100 * settings.tolerance:g} %",
        )
        if reached <= settings.tolerance:
            return detected.count
        per_kept = detected.count / int(kept.sum())
        needed = samples_needed(so_far, shares, settings.tolerance) * per_kept
        return min(self._cap, max(detected.count + 1, round(_MARGIN * needed)))


class Failing:
    """Context in which one model may fail: it is set aside with its reason. A full disk, the only
    model, or a job that ends anyway, ends the job.
    """

    def __init__(
        self, name: str, result: Result, alone: bool, stopped: threading.Event | None = None
    ):
        self._name, self._result, self._alone, self._stopped = name, result, alone, stopped

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        ends = self._stopped is not None and self._stopped.is_set()
        if not isinstance(error, Exception) or self._alone or ends or is_disk_full(error):
            return False
        self._result.detected.pop(self._name, None)
        self._result.failed[self._name] = one_line(error)
        say("detection", f"{self._name}: cannot be detected: {one_line(error)}")
        return True
