"""The steps of a run, in order: each property does its step once, reuses what is cached, and leaves
the files named in the README.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from versatune_ray.detection.distribution import given
from versatune_ray.errors import Incomplete, UserError
from versatune_ray.runs.folder import RunFolder, Step, contents, say
from versatune_ray.runs.storage import fetch, push
from versatune_ray.runtime.cluster import use_gpus
from versatune_ray.runtime.models import check_length, model_fingerprint
from versatune_ray.settings import Config, Subject, semantics
from versatune_ray.settings.location import shown
from versatune_ray.settings.recipe import Unit
from versatune_ray.training.given_losses import given_losses

_FEW = 20  # held-out records, below which a loss is mostly noise


class Run:
    """A run and its steps, inside a ``RunFolder`` and on a Ray that is connected; ``callbacks`` are
    Ray Train's, of the fine-tuning.
    """

    def __init__(self, folder: RunFolder, callbacks: Sequence[Any] = ()):
        self.folder, self.callbacks = folder, callbacks
        self.given_config = folder.config
        self.cache = folder.config.cache_folder
        self.needs_model = True
        self.unmeasured: dict[str, str] = {}  # benchmarks that failed, and why
        self.needs_judge = (
            folder.config.detection.distribution is None
            and semantics.needs_detection(folder.config)
        )

    @cached_property
    def config(self) -> Config:
        """The configuration with the microworld, the tiny base model and the tiny judge filled in
        where nothing else is named.
        """
        from versatune_ray.microworld.prepare import prepare

        asked = self.given_config
        needs_base = self.needs_model and asked.model.path is None
        if needs_base or (self.needs_judge and asked.detection.judge.path is None):
            config: Config = self.folder.step(
                "tiny base model and judge",
                lambda: Step(*prepare(asked, needs_base, self.needs_judge)),
            )
            return config
        return prepare(asked, needs_base, self.needs_judge)[0]

    @cached_property
    def model(self) -> str:
        path = self.config.model.path
        if path is None:
            raise UserError(
                "model.path: missing; detection.models are for jobs/detect.py, this job works on "
                "one model"
            )
        return path

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.model)

    @cached_property
    def gpu(self) -> bool:
        return use_gpus(self.given_config.device)

    @property
    def names(self) -> list[str]:
        if not self.config.domains:
            raise UserError(
                "domains: missing; base.corpora alone is enough for jobs/make_base.py only"
            )
        return list(self.config.domains)

    @cached_property
    def reference_model(self) -> str:
        return self.config.reference.model or self.model

    @cached_property
    def tokenizer(self) -> str:
        """Fingerprint of the model's tokenizer."""
        return self._tokenizer_of(self.model)

    @cached_property
    def unit(self) -> Unit:
        """Losses of models with different tokenizers are compared per byte."""
        if self.config.reference.losses is not None:
            unit: Unit = given_losses(self.config.reference.losses, self.names, self.tokenizer)[
                "unit"
            ]
            return unit
        return (
            "nats/token"
            if self._tokenizer_of(self.reference_model) == self.tokenizer
            else "nats/byte"
        )

    @cached_property
    def stores(self) -> Any:
        """Paths of the token stores per domain; ``data.json`` accounts for every record."""
        from versatune_ray.domains import load_domains

        for name, domain in self.config.domains.items():
            if not domain.train:
                raise UserError(
                    f"domains.{name}.train: missing; without records there is nothing to train on"
                )
        check_length(
            "data.max_length",
            self.config.data.max_length,
            self.model,
            self.config.model.trust_remote_code,
        )
        paths = self.folder.step("token store", lambda: self._build_stores(self.model))
        counts = {
            name: domain.counts for name, domain in load_domains(paths, self.config.data).items()
        }
        self.folder.write(
            "data.json", {"domains": counts, "tokenizer": shown(self.model), "unit": self.unit}
        )
        listed = ", ".join(
            f"{name} {count['train']}+{count['validation']}" for name, count in counts.items()
        )
        say("data", f"{listed} records (train+held out)")
        for name, count in counts.items():
            odd = {
                what: n
                for what, n in count.items()
                if what in ("bad", "cut", "over_long_kept", "duplicates_removed", "train_unused")
                and n
            }
            if odd:
                say(
                    "data",
                    f"{name}: "
                    + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in odd.items()),
                )
            if count["validation"] < _FEW:
                way_out = (
                    f"name more in domains.{name}.validation, or raise data.validation_fraction"
                )
                say(
                    "data",
                    f"{name}: only {count['validation']} records held out, so its loss is noisy; "
                    f"{way_out}",
                )
        return paths

    def make_base(self) -> Path:
        """Base model, and judge if it is not named, whether or not the rest of the configuration
        needs them.
        """
        self.needs_judge = self.given_config.base.judge_rows > 0
        return Path(self.model)

    def detect(self) -> Path:
        """Detection for its own sake, whatever the start is, of ``detection.models`` or else of the
        model to fine-tune.

        Raises:
            Incomplete: some of several models could not be detected; the others are done.
        """
        from versatune_ray.detection.summary import comparison, write_comparison

        settings = self.given_config.detection
        self.needs_judge = settings.distribution is None
        self.needs_model = not settings.models
        if settings.distribution is not None:
            assert self.detection
            return self.report()
        found, failed = self._detect(
            self.config.detection.models or [Subject(path=self.model, engine=settings.engine)]
        )
        self.folder.write("detection/failed.json", failed)
        if not found:
            raise Incomplete(
                "no model is detected: "
                + "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            )
        write_comparison(found, self.folder.path / "detection" / "comparison.csv")
        print("\n" + "\n".join(comparison(found)) + "\n", flush=True)
        page = self.report()
        if failed:
            listed = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise Incomplete(
                f"{len(found)} of {len(found) + len(failed)} models are detected ({page}); not "
                f"detected: {listed}"
            )
        return page

    @cached_property
    def detection(self) -> dict[str, Any]:
        """The detected (or given) distribution of the model to fine-tune, as in
        ``distribution.json``.
        """
        settings, names = self.config.detection, self.names
        if settings.distribution is not None:
            known = given(settings.distribution, names)
            self.folder.write(f"detection/{Path(self.model).name}/distribution.json", known)
            return known
        found, _ = self._detect([Subject(path=self.model, engine=settings.engine)])
        (distribution,) = found.values()
        shares = zip(names, distribution["share"], strict=True)
        say("detection", ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares))
        return distribution

    def _detect(
        self, subjects: Sequence[Subject]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Distributions by name, placed in the run's folder, and why others are missing."""
        from versatune_ray.detection.detect import detect
        from versatune_ray.detection.summary import account, place_detection

        settings = self.config.detection

        def run() -> Step:
            done = detect(subjects, self.config, gpu=self.gpu)
            for name, one in done.detected.items():
                place_detection(one, done.spec, settings, self._detection_folder(name))
            return Step(done, done.reused)

        done = self.folder.step("detection", run)
        found = {name: one.distribution for name, one in done.detected.items()}
        for line in account(found):
            say("detection", line)
        if not done.reused:
            took = done.seconds
            share = 100 * took["judging"] / sum(took.values())
            say(
                "detection",
                f"generation took {took['generation']:.0f} s and judging {took['judging']:.0f} s, "
                f"{share:.0f} % of both",
            )
        return found, done.failed

    def _detection_folder(self, name: str) -> Path:
        return self.folder.path / "detection" / name

    @cached_property
    def reference(self) -> dict[str, Any]:
        """Reference losses, as in ``reference/losses.json``."""
        file = self.config.reference.losses
        if file is not None:
            found = given_losses(file, self.names, self.tokenizer)
        else:
            from versatune_ray.training.reference import reference_losses

            paths = (
                self.stores
                if self.unit == "nats/token"
                else self._build_stores(self.reference_model).value
            )
            fingerprint = model_fingerprint(self.reference_model)

            def run() -> Step:
                return Step(
                    *reference_losses(
                        self.reference_model,
                        fingerprint,
                        paths,
                        self.config,
                        self.unit,
                        self.cache,
                        gpu=self.gpu,
                    )
                )

            found = self.folder.step("reference losses", run) | {
                "tokenizer": self._tokenizer_of(self.reference_model)
            }
        self.folder.write("reference/losses.json", found)
        say(
            "reference",
            ", ".join(f"{name} {domain['loss']:.3f}" for name, domain in found["domains"].items())
            + f" {self.unit}",
        )
        return found

    @cached_property
    def tuned(self) -> Path:
        """Folder of the tuned model."""
        from versatune_ray.detection.summary import starting_share
        from versatune_ray.training.finetune import finetune

        detected = (
            starting_share(self.detection) if semantics.needs_detection(self.config) else None
        )
        reference = self.reference if semantics.needs_reference(self.config) else None
        inputs: dict[str, Any] = {
            "model": self.fingerprint,
            "stores": {
                name: [folder and folder.name for folder in paths]
                for name, paths in self.stores.items()
            },
            "detected": detected,
            "reference": None
            if reference is None
            else {name: domain["loss"] for name, domain in reference["domains"].items()},
        }
        if self.config.training.soft_mask:
            inputs["training.soft_mask"] = contents(self.config.training.soft_mask)
        folder = self.folder.path / "finetune"
        begun, done = folder / "inputs.json", folder / "done"
        if begun.is_file():
            before = json.loads(begun.read_text(encoding="utf-8"))
            changed = [
                name for name in inputs if before.get(name) != json.loads(json.dumps(inputs[name]))
            ]
            if changed:
                raise UserError(
                    f"{shown(folder)}: {', '.join(changed)} changed since this fine-tuning began; "
                    f"choose another name with run=…"
                )
        self.folder.write("finetune/inputs.json", inputs)

        def run() -> Step:
            if done.is_file():
                return Step(fetch(folder / "model"), True)
            tuned = finetune(
                self.config,
                self.model,
                self.stores,
                detected,
                reference,
                self.unit,
                gpu=self.gpu,
                callbacks=self.callbacks,
            )
            done.touch()
            push(done)
            return Step(tuned, False)

        tuned: Path = self.folder.step("fine-tuning", run)
        return tuned

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Before and after, as in ``evaluation/results.json``."""
        from versatune_ray.domains import load_domains
        from versatune_ray.evaluation.questions import ask, load_questions
        from versatune_ray.evaluation.results import results

        # a mistake in them is told before the training and not after it
        questions = load_questions(self.config)
        assert self.asked is not None
        tuned, config = self.tuned, self.config
        template, remote = config.data.chat_template, config.model.trust_remote_code

        def run() -> Step:
            answers: dict[str, dict[str, list[str]]] = {}
            reused = True
            for name, model in (("base", self.model), ("tuned", str(tuned))) if questions else ():
                fingerprint = model_fingerprint(model)
                answers[name], failed, cached = ask(
                    model,
                    fingerprint,
                    questions,
                    config.evaluation,
                    template,
                    self.cache,
                    gpu=self.gpu,
                    trust_remote_code=remote,
                    template_kwargs=config.data.chat_template_kwargs,
                )
                reused = reused and cached
                if failed:
                    say(
                        "evaluation",
                        f"{name}: {len(failed)} questions failed and count as wrong: {failed[0]}",
                    )
            held_out = {
                name: len(domain.validation)
                for name, domain in load_domains(self.stores, config.data).items()
            }
            return Step(
                results(
                    questions,
                    answers,
                    self.folder.path / "finetune" / "adjustments.jsonl",
                    held_out,
                    self.unit,
                ),
                reused,
            )

        found: dict[str, Any] = self.folder.step("evaluation", run)
        self._write_results(found["results"] + self.benchmarks, found["answers"])
        before = {
            (row["domain"], row["metric"]): row["value"]
            for row in found["results"]
            if row["model"] == "base"
        }
        for row in (row for row in found["results"] if row["model"] == "tuned"):
            was = before[row["domain"], row["metric"]]
            say(
                "evaluation",
                f"{row['domain']:<12} {row['metric']:<12} {was:.3f} → {row['value']:.3f}  (n = "
                f"{row['n']})",
            )
        return found

    @cached_property
    def asked(self) -> list[Any]:
        """The benchmarks, read and checked."""
        if not self.given_config.evaluation.benchmarks:
            return []
        from versatune_ray.evaluation.benchmarks import asked

        return asked(self.given_config, self.cache)

    @cached_property
    def benchmarks(self) -> list[dict[str, Any]]:
        """Rows of ``evaluation/results.json``: base, tuned (where this run has it) and
        ``evaluation.models`` on every benchmark.
        """
        if not self.asked:
            return []
        from versatune_ray.evaluation.harness import measure

        tuned = self.folder.path / "finetune"
        models = {"base": self.model}
        if (tuned / "done").is_file():
            models["tuned"] = str(fetch(tuned / "model"))
        models |= self.config.evaluation.models
        rows, failed, _ = self.folder.step(
            "benchmarks", lambda: _step(measure(models, self.asked, self.config, self.gpu))
        )
        self.folder.write("evaluation/failed.json", failed)
        self.unmeasured = failed
        return rows  # type: ignore[no-any-return]

    def measure(self) -> Path:
        """Benchmarks for their own sake.

        Raises:
            Incomplete: some could not be measured; the others are in the report.
        """
        from versatune_ray.evaluation.scores import scores, table

        self.needs_judge = False
        rows = self.benchmarks
        file = self.folder.path / "evaluation" / "results.json"
        before = (
            json.loads(file.read_text(encoding="utf-8"))
            if file.is_file()
            else {"results": [], "answers": []}
        )
        kept = [row for row in before["results"] if row["benchmark"] in ("held_out", "questions")]
        self._write_results(kept + rows, before["answers"])
        if rows:
            print("\n" + table(scores(rows)) + "\n", flush=True)
        page = self.report()
        if self.unmeasured:
            listed = "; ".join(
                f"{name}: {reason}" for name, reason in list(self.unmeasured.items())[:3]
            )
            raise Incomplete(
                f"{len(self.unmeasured)} measurements failed ({listed}); the same command tries "
                f"them again. The others: {page}"
            )
        return page

    def _write_results(self, rows: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
        self.folder.write("evaluation/results.json", {"results": rows, "answers": answers})

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

    def _build_stores(self, tokenizer: str) -> Step:
        from versatune_ray.domains.tokenize import build_stores

        began = int(time.time())
        paths = build_stores(self.config, self.config.domains, tokenizer, self.cache)
        stores = [folder for pair in paths.values() for folder in pair if folder is not None]
        return Step(paths, all((folder / "meta.json").stat().st_mtime < began for folder in stores))

    def _tokenizer_of(self, model: str) -> str:
        from versatune_ray.domains.chat import load_tokenizer, tokenizer_fingerprint

        return tokenizer_fingerprint(
            load_tokenizer(
                model,
                self.config.data.chat_template,
                self.config.model.trust_remote_code,
                self.config.data.chat_template_kwargs,
            )
        )


def _step(measured: tuple[list[dict[str, Any]], dict[str, str], bool]) -> Step:
    return Step(measured, measured[2])


def plan_detection(config: Config) -> str:
    """What ``Run.detect`` would do, as text; nothing is started or made."""
    from versatune_ray.detection.plan import plan as plan_of
    from versatune_ray.microworld.prepare import prepare

    if config.detection.distribution is not None:
        return f"nothing to detect: the distribution is given ({config.detection.distribution})"
    config, _ = prepare(
        config, not config.detection.models and config.model.path is None, True, make=False
    )
    if config.detection.models:
        return plan_of(config, config.detection.models)
    if config.model.path is None:
        asked = f"{config.detection.samples * config.detection.repeats:,} sequences"
        return (
            f"a tiny base model is trained first (minutes on a CPU); then it writes up to {asked}, "
            f"which a judge reads"
        )
    return plan_of(config, [Subject(path=config.model.path, engine=config.detection.engine)])


def plan_finetuning(config: Config) -> str:
    """What ``Run.tuned`` would do and take, as text. Records of some megabytes are tokenised for
    it, which the run would do as well.
    """
    from versatune_ray.domains import load_domains
    from versatune_ray.domains.tokenize import build_stores, small_enough_for_a_look
    from versatune_ray.microworld.prepare import prepare
    from versatune_ray.training.budget import outlook

    config, _ = prepare(config, config.model.path is None, False, make=False)
    if config.model.path is None:
        return (
            "a tiny base model is trained first (minutes on a CPU); its fine-tuning takes minutes "
            "and less than a GiB"
        )
    domains = None
    if small_enough_for_a_look(config.domains):
        paths = build_stores(
            config, config.domains, config.model.path, config.cache_folder, distributed=False
        )
        domains = load_domains(paths, config.data)
    return outlook(config, config.model.path, domains)


def plan_pipeline(config: Config) -> str:
    """What all steps up to the tuned model would do and take."""
    detected = [plan_detection(config), ""] if semantics.needs_detection(config) else []
    return "\n".join([*detected, plan_finetuning(config)])
