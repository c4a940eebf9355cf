"""What the steps of a run work on: the whole configuration, the base model, the domains and their
token stores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from versatune_ray.domains import DomainData, DomainPaths, load_domains
from versatune_ray.domains.contamination import mark
from versatune_ray.errors import UserError
from versatune_ray.runs.artefacts import Counts
from versatune_ray.runs.folder import RunFolder, Step, say
from versatune_ray.runtime.cluster import use_gpus
from versatune_ray.runtime.models import check_length, model_fingerprint
from versatune_ray.settings import Config
from versatune_ray.settings.location import shown
from versatune_ray.settings.recipe import Unit
from versatune_ray.settings.training import Keep

Stores = Mapping[str, DomainPaths]
_FEW = 20  # held-out records, below which a loss is mostly noise
_ODD = (
    "bad", "left_out", "cut", "over_long_kept", "duplicates_removed", "similar_removed",
    "train_unused", "train_repeated",
)  # fmt: skip
Made = TypeVar("Made")
Of = TypeVar("Of", bound="Inputs")


def once(step: Callable[[Of], Made]) -> Callable[[Of], Made]:
    """A step that is asked for again gives what it made."""

    @wraps(step)
    def done(run: Of) -> Made:
        if step.__name__ not in run.made:
            run.made[step.__name__] = step(run)
        made: Made = run.made[step.__name__]
        return made

    return done


class Inputs:
    """The inputs of a run, inside a ``RunFolder`` and on a Ray that is connected.

    Args:
        callbacks: Ray Train's, of the fine-tuning.
        stores: token stores that are there. The configuration is then complete as it is: nothing
            of it is looked up or made.
    """

    def __init__(
        self, folder: RunFolder, callbacks: Sequence[Any] = (), stores: Stores | None = None
    ):
        self.folder, self.callbacks = folder, callbacks
        self.given_config = folder.config
        self.cache = folder.config.cache_folder
        self.made: dict[str, Any] = {} if stores is None else {"tokenize": stores}
        self._prepared: dict[tuple[bool, bool], Config] = (
            {} if stores is None else {(True, True): folder.config}
        )

    def prepare(self, *, base: bool = True, judge: bool = False) -> Config:
        """The configuration with the microworld, the tiny base model and the tiny judge filled in
        where nothing else is named. Models that are missing are trained: minutes on a CPU.

        Args:
            base: the base model is needed.
            judge: a judge is needed.
        """
        from versatune_ray.microworld.prepare import prepare

        for (has_base, has_judge), config in self._prepared.items():
            if has_base >= base and has_judge >= judge:
                return config
        asked = self.given_config
        tiny_base = base and asked.model.path is None
        if tiny_base or (judge and asked.detection.judge.path is None):
            prepared: Config = self.folder.step(
                "tiny base model and judge", lambda: Step(*prepare(asked, tiny_base, judge))
            )
        else:
            prepared, _ = prepare(asked, tiny_base, judge)
        self._prepared[base, judge] = prepared
        return prepared

    def model(self) -> str:
        """Folder or Hugging Face id of the base model; a tiny one is trained where none is named.

        Raises:
            UserError: ``detection.models`` alone are named.
        """
        path = self.prepare().model.path
        if path is None:
            raise UserError(
                "model.path: missing; detection.models are for jobs/detect.py, this job works on "
                "one model"
            )
        return path

    def with_replay(self, keep: Keep) -> Config:
        """``prepare``, with what the base wrote itself among the records of the domains that
        ``keep.replay`` names.
        """
        config = self.prepare()
        if not any(keep.replay.values()):
            return config
        from versatune_ray.detection.generate import generate, generator
        from versatune_ray.pipeline.written import with_written, written_texts

        name, engine = Path(self.model()).name, config.detection.engine
        source = generator(name, self.model(), engine, config, gpu=self.gpu())

        def write() -> Step:
            made = generate(source, keep.replay_samples, gpu=self.gpu())
            files = {
                name: written_texts(
                    source.folder, keep.replay_samples, self.cache, config.domains[name].allowed
                )
                for name, part in keep.replay.items()
                if part
            }
            return Step(files, not made)

        files = self.folder.step("replay", write)
        return config.model_copy(
            update={"domains": with_written(config.domains, keep.replay, files)}
        )

    @once
    def fingerprint(self) -> str:
        """What stands for the base model's content."""
        return model_fingerprint(self.model(), self.cache)

    @once
    def gpu(self) -> bool:
        """Whether this run works on GPUs."""
        return use_gpus(self.given_config.device)

    def domain_names(self) -> list[str]:
        """The domains, those of the microworld where none are configured.

        Raises:
            UserError: there are none.
        """
        names = list(self.prepare().domains)
        if not names:
            raise UserError(
                "domains: missing; base.corpora alone is enough for jobs/make_base.py only"
            )
        return names

    @once
    def tokenizer(self) -> str:
        """Fingerprint of the base model's tokenizer."""
        return self._tokenizer_of(self.model())

    @once
    def unit(self) -> Unit:
        """What losses are measured in."""
        from versatune_ray.training.inputs import loss_unit

        return loss_unit(self.prepare(), self.model())

    @once
    def tokenize(self) -> Stores:
        """The token stores per domain; ``data.json`` accounts for every record."""
        from versatune_ray.training.inputs import check_rows

        config = self.prepare()
        for name, domain in config.domains.items():
            if not domain.train:
                raise UserError(
                    f"domains.{name}.train: missing; without records there is nothing to train on"
                )
        check_length(
            "data.max_length",
            config.data.max_length,
            self.model(),
            config.model.trust_remote_code,
        )
        stores, contaminated = self._stores(config.training.keep)
        domains = load_domains(stores, config.data)
        check_rows(config, self.model(), domains)
        accounts = {
            name: data.counts | data.account | {"contaminated": contaminated.get(name, {})}
            for name, data in domains.items()
        }
        self.folder.write(
            Counts.FILE,
            {"domains": accounts, "tokenizer": shown(self.model()), "unit": self.unit()},
        )
        for line in (*_account(domains), *_contaminated(contaminated, config.data.contaminated)):
            say("data", line)
        return stores

    def replayed(self, keep: Keep) -> Stores:
        """As ``tokenize``, with what ``keep.replay`` says instead, for a trial: no account."""
        return self._stores(keep)[0]

    def stores_read_by(self, model: str) -> Stores:
        """As ``tokenize``, with the tokenizer of another model."""
        from versatune_ray.training.inputs import tokenizer_of

        config = self.with_replay(self.prepare().training.keep)
        stores: Stores = self._build_stores(config, model).value
        return mark(config, stores, tokenizer_of(config, model), self.cache)[0]

    def _stores(self, keep: Keep) -> tuple[Stores, Mapping[str, Mapping[str, int]]]:
        from versatune_ray.training.inputs import tokenizer_of

        config = self.with_replay(keep)
        stores: Stores = self.folder.step(
            "token store", lambda: self._build_stores(config, self.model())
        )
        return mark(config, stores, tokenizer_of(config, self.model()), self.cache)

    def _reference_model(self) -> str:
        return self.given_config.reference.model or self.model()

    def _build_stores(self, config: Config, tokenizer: str) -> Step:
        from versatune_ray.domains.tokenizing import build_stores

        began = int(time.time())
        paths = build_stores(config, config.domains, tokenizer, self.cache)
        stores = [folder for one in paths.values() for folder in one.folders]
        return Step(paths, all((folder / "meta.json").stat().st_mtime < began for folder in stores))

    def _tokenizer_of(self, model: str) -> str:
        from versatune_ray.domains.chat import tokenizer_fingerprint
        from versatune_ray.training.inputs import tokenizer_of

        return tokenizer_fingerprint(tokenizer_of(self.given_config, model))


def _contaminated(counts: Mapping[str, Mapping[str, int]], policy: str) -> Iterator[str]:
    """Training records that hold what is asked later."""
    for name, count in counts.items():
        if any(count.values()):
            done = (
                "they are left out"
                if policy == "remove"
                else "data.contaminated=remove leaves them out"
            )
            yield (
                f"{name}: {count['ask']} training records ask one of the questions, "
                f"{count['share']} share 13 tokens in a row with one; {done}"
            )


def _account(domains: Mapping[str, DomainData]) -> Iterator[str]:
    """What a person should know of the records: how many, what is odd, where too few measure."""
    sizes = (f"{name} {len(data.train)}+{len(data.validation)}" for name, data in domains.items())
    yield f"{', '.join(sizes)} records (train+held out)"
    for name, data in domains.items():
        odd = [
            f"{data.counts[what]} {what.replace('_', ' ')}" for what in _ODD if data.counts[what]
        ]
        if odd:
            yield f"{name}: {', '.join(odd)}"
        if unread := data.account["unused_fields"]:
            fields = ", ".join(f"{field} in {n} records" for field, n in unread.items())
            yield f"{name}: fields that are not read: {fields}"
        for what, n in data.account["template_drops"].items():
            yield f"{name}: the chat template drops {what}: {n:,} of them"
        if len(data.validation) < _FEW:
            yield (
                f"{name}: only {len(data.validation)} records held out, so its loss is noisy; "
                f"name more in domains.{name}.validation, or raise data.validation_fraction"
            )
