"""The steps of a run, in order. Each is a method that does its step once, reuses what is cached,
leaves the files named in the README, and returns what it made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from versatune_ray.detection.distribution import given
from versatune_ray.detection.distribution_file import Distribution, starting_share
from versatune_ray.domains import load_domains
from versatune_ray.errors import Incomplete
from versatune_ray.pipeline.inputs import Inputs, Stores, once
from versatune_ray.runs.artefacts import FAILED, Evaluation, Reference
from versatune_ray.runs.folder import Step, say
from versatune_ray.runs.storage import fetch, push
from versatune_ray.runs.training_log import read_log
from versatune_ray.runtime.models import model_fingerprint
from versatune_ray.settings import Config, Subject, semantics
from versatune_ray.training.given_losses import given_losses

Rows = list[dict[str, Any]]


class Benchmarks(NamedTuple):
    """Rows as in ``evaluation/results.json``, and why others are missing, by "model: benchmark"."""

    rows: Rows
    failed: dict[str, str]


class Run(Inputs):
    """A run and its steps; those that take hours are named by verbs."""

    def make_base(self) -> Path:
        """Base model, and judge if it is not named, whether or not the rest of the configuration
        needs them.
        """
        self.prepare(judge=self.given_config.base.judge_rows > 0)
        return Path(self.model())

    @once
    def detect(self) -> Mapping[str, Any]:
        """The detected (or given) distribution of the model to fine-tune, as in
        ``distribution.json``.
        """
        settings, names = self.given_config.detection, self.domain_names()
        if settings.distribution is not None:
            known = given(settings.distribution, names)
            self.folder.write(f"detection/{Path(self.model()).name}/distribution.json", known)
            return known
        config = self.prepare(judge=True)
        distributions, _ = self._detect(
            config, [Subject(path=self.model(), engine=settings.engine)]
        )
        (distribution,) = distributions.values()
        shares = zip(names, distribution.share, strict=True)
        say("detection", ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares))
        return distribution.as_json()

    def detect_all(self) -> Path:
        """Detection for its own sake, whatever the start is, of ``detection.models`` or else of the
        model to fine-tune; returns the report.

        Raises:
            Incomplete: some of several models could not be detected; the others are done.
        """
        from versatune_ray.detection.account import comparison, write_comparison

        settings = self.given_config.detection
        if settings.distribution is not None:
            self.detect()
            return self.report()
        config = self.prepare(base=not settings.models, judge=True)
        alone = () if settings.models else (Subject(path=self.model(), engine=settings.engine),)
        distributions, failed = self._detect(config, config.detection.models or alone)
        self.folder.write(f"detection/{FAILED}", failed)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        if not distributions:
            raise Incomplete(f"no model is detected: {reasons}")
        write_comparison(distributions, self.folder.path / "detection" / "comparison.csv")
        print("\n" + "\n".join(comparison(distributions)) + "\n", flush=True)
        page = self.report()
        if failed:
            raise Incomplete(
                f"{len(distributions)} of {len(distributions) + len(failed)} models are "
                f"detected ({page}); not detected: {reasons}"
            )
        return page

    def _detect(
        self, config: Config, subjects: Sequence[Subject]
    ) -> tuple[dict[str, Distribution], dict[str, str]]:
        """Distributions by name, placed in the run's folder, and why others are missing."""
        from versatune_ray.detection.account import account, place_detection
        from versatune_ray.detection.detect import Detections, detect_models

        def detect() -> Step:
            done = detect_models(subjects, config, gpu=self.gpu())
            for name, detected in done.detected.items():
                folder = self.folder.path / "detection" / name
                place_detection(detected, done.spec, config.detection, folder)
            return Step(done, done.reused)

        done: Detections = self.folder.step("detection", detect)
        distributions = {name: detected.distribution for name, detected in done.detected.items()}
        for line in account(distributions):
            say("detection", line)
        if not done.reused:
            took = done.seconds
            share = 100 * took["judging"] / sum(took.values())
            say(
                "detection",
                f"generation took {took['generation']:.0f} s and judging {took['judging']:.0f} s, "
                f"{share:.0f} % of both",
            )
        return distributions, done.failed

    @once
    def measure_references(self) -> dict[str, Any]:
        """Reference losses, as in ``reference/losses.json``."""
        config = self.prepare()
        if config.reference.losses is not None:
            references = given_losses(
                config.reference.losses, self.domain_names(), self.tokenizer()
            )
        else:
            from versatune_ray.training.reference import reference_losses

            model, unit = self._reference_model(), self.unit()
            stores = self.tokenize() if unit == "nats/token" else self.stores_read_by(model)
            fingerprint, gpu = model_fingerprint(model, self.cache), self.gpu()
            references = self.folder.step(
                "reference losses",
                lambda: Step(
                    *reference_losses(model, fingerprint, stores, config, unit, self.cache, gpu=gpu)
                ),
            ) | {"tokenizer": self._tokenizer_of(model)}
        self.folder.write(Reference.FILE, references)
        losses = (f"{name} {domain['loss']:.3f}" for name, domain in references["domains"].items())
        say("reference", f"{', '.join(losses)} {self.unit()}")
        return references

    @once
    def finetune(self) -> Path:
        """Folder of the tuned model."""
        from versatune_ray.training.finetune import finetune
        from versatune_ray.training.inputs import inputs_of

        config, stores = self.prepare(judge=self._asks_judge()), self.tokenize()
        self.check_stages(config, stores)
        detected = starting_share(self.detect()) if semantics.needs_detection(config) else None
        reference = self.measure_references() if semantics.needs_reference(config) else None
        self.folder.begin(inputs_of(config, self.fingerprint(), stores, detected, reference))
        folder = self.folder.path / "finetune"
        done = folder / "done"

        def train() -> Step:
            if done.is_file():
                return Step(fetch(folder / "model"), True)
            tuned = finetune(
                config,
                self.model(),
                stores,
                detected,
                reference,
                self.unit(),
                gpu=self.gpu(),
                callbacks=self.callbacks,
            )
            done.touch()
            push(done)
            return Step(tuned, False)

        tuned: Path = self.folder.step("fine-tuning", train)
        log = read_log(self.folder.path)
        if log.step != (last := log.lines[-1]["step"]):
            best = config.training.keep_best
            say("fine-tuning", f"the model is that of step {log.step} of {last}: lowest {best}")
        return tuned

    @once
    def evaluate(self) -> dict[str, Any]:
        """Before and after, as in ``evaluation/results.json``."""
        from versatune_ray.evaluation.before_after import ask_both, changes
        from versatune_ray.evaluation.questions import load_questions
        from versatune_ray.evaluation.results import results

        # a mistake in questions or benchmarks is told before the training and not after it
        config = self.prepare(judge=self._asks_judge())
        questions = load_questions(config)
        self.benchmarks_asked()
        models = {"base": self.model(), "tuned": self.whole_model(str(self.finetune()))}

        def evaluate() -> Step:
            answers, reused = ask_both(models, questions, config, self.cache, gpu=self.gpu())
            domains = load_domains(self.tokenize(), config.data)
            held_out = {name: len(domain.validation) for name, domain in domains.items()}
            log = read_log(self.folder.path)
            return Step(results(questions, answers, log, held_out, self.unit()), reused)

        content: dict[str, Any] = self.folder.step("evaluation", evaluate)
        self._write_results(content["results"] + self.measure_benchmarks().rows, content["answers"])
        for line in changes(content["results"]):
            say("evaluation", line)
        return content

    @once
    def measure_benchmarks(self) -> Benchmarks:
        """Base, tuned (where this run has it) and ``evaluation.models`` on every benchmark."""
        asked = self.benchmarks_asked()
        if not asked:
            return Benchmarks([], {})
        from versatune_ray.evaluation.harness import measure

        tuned = self.folder.path / "finetune"
        models = {"base": self.model()}
        if (tuned / "done").is_file():
            models["tuned"] = str(fetch(tuned / "model"))
        config = self.prepare()
        models = {
            name: self.whole_model(path)
            for name, path in (models | config.evaluation.models).items()
        }

        def run() -> Step:
            rows, failed, reused = measure(models, asked, config, self.gpu())
            return Step(Benchmarks(rows, failed), reused)

        measured: Benchmarks = self.folder.step("benchmarks", run)
        self.folder.write(f"evaluation/{FAILED}", measured.failed)
        return measured

    def measure_all(self) -> Path:
        """Benchmarks for their own sake; returns the report.

        Raises:
            Incomplete: some could not be measured; the others are in the report.
        """
        from versatune_ray.evaluation.scores import scores, table

        rows, failed = self.measure_benchmarks()
        file = self.folder.path / Evaluation.FILE
        before: dict[str, Rows] = {"results": [], "answers": []}
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
        kept = [row for row in before["results"] if row["benchmark"] in ("held_out", "questions")]
        self._write_results(kept + rows, before["answers"])
        if rows:
            print("\n" + table(scores(rows)) + "\n", flush=True)
        page = self.report()
        if failed:
            listed = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:3])
            raise Incomplete(
                f"{len(failed)} measurements failed ({listed}); the same command tries them again. "
                f"The others: {page}"
            )
        return page

    def report(self) -> Path:
        """Write ``report.html`` from the run's files, unless none of them changed since it was
        written.
        """
        from versatune_ray.report import build_report

        page = self.folder.path / "report.html"
        if page.is_file() and not self.folder.newer_than(page):
            say("report", "this run was finished before; nothing was done again")
            return page
        self.folder.finish()
        page = build_report(self.folder.path)
        push(page)
        return page

    @once
    def benchmarks_asked(self) -> list[Any]:
        """The benchmarks, read and checked."""
        if not self.given_config.evaluation.benchmarks:
            return []
        from versatune_ray.evaluation.benchmarks import asked

        return asked(self.given_config, self.cache)

    def whole_model(self, model: str) -> str:
        """The model, merged with its base where it is an adapter."""
        from versatune_ray.training import adapters

        return adapters.whole_model(model, self.cache, self.given_config.model.trust_remote_code)

    def check_stages(self, config: Config, stores: Stores) -> None:
        """Raises ``UserError`` where the records do not last for the run, whatever is detected, or
        the run not for what its policy has to try.
        """
        data, names = load_domains(stores, config.data), self.domain_names()
        sizes, k = [len(data[name].train) for name in names], len(names)
        semantics.stages(config, names, sizes, [1 / k] * k, self.unit())

    def _asks_judge(self) -> bool:
        """Whether the fine-tuning starts from a detection that has yet to be made."""
        config = self.given_config
        return config.detection.distribution is None and semantics.needs_detection(config)

    def _write_results(self, rows: Rows, answers: Rows) -> None:
        self.folder.write(Evaluation.FILE, {"results": rows, "answers": answers})
