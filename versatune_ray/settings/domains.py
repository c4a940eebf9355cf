"""Keys of the records: the sources of a domain, and how records become tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator

from versatune_ray.settings.common import Paths, Section, as_list, setting


class Source(Section):
    """A source with a part of its own inside a domain, or whose records only train."""

    path: str = setting(..., "file, folder, URI or Hugging Face dataset id")
    weight: float | None = setting(
        None,
        "its part of the domain's samples, relative to the others; none: 1, or, where no source "
        "has one, by its records",
        gt=0,
    )
    hold_out: bool = setting(
        True, "whether a part of its records is held out; false for what a model wrote, say"
    )


Sources = Annotated[list[str | Source], BeforeValidator(as_list)]


class Domain(Section):
    train: Sources = setting(
        list,
        "training records: files, folders, URIs or Hugging Face dataset ids "
        "(org/name:config@split@revision); a source may be {path: …, weight: …}, and then gives "
        "that part of the domain's samples, or {path: …, hold_out: false}, and then only trains",
    )
    validation: Paths = setting(list, "held-out records; none: a stable hash split of `train`")
    questions: Paths = setting(
        list, "question/answer records for exact match before and after; none: loss only"
    )
    labelled: Paths = setting(
        list,
        "texts (a `text` field, or .txt) that the judge is measured on; none: the held-out records",
    )
    fields: dict[str, str] = setting(
        dict, "our name of a field → the records' own, as {prompt: q, completion: a}; none: by name"
    )
    where: dict[str, Any] = setting(
        dict,
        "keep only records of `train` and `validation` with this value, or one of these, as "
        "{split: train, lang: [en, fr]}; none: all",
    )
    order: Literal["random", "given", "length"] = setting(
        "random",
        "order of its records at every pass: another at random each time; as they were given; the "
        "shortest first",
    )
    description: str = setting("", "what belongs to the domain, in words, for the judge's prompt")

    @field_validator("fields")
    @classmethod
    def _told_apart(cls, value: dict[str, str]) -> dict[str, str]:
        if len(set(value.values())) < len(value):
            raise ValueError(f"one column cannot be two fields; found {value}")
        return value

    @property
    def allowed(self) -> dict[str, list[Any]]:
        """``where``, each column with the list of its values."""
        return {
            name: value if isinstance(value, list) else [value]
            for name, value in self.where.items()
        }

    def specs(self, side: str) -> list[str]:
        """The sources under one of the keys, without their weights."""
        given: list[str | Source] = getattr(self, side)
        return [source.path if isinstance(source, Source) else source for source in given]

    @property
    def weights(self) -> list[float] | None:
        """The weight of each source of ``train``, where at least one has one; the others have 1."""
        given = [source.weight if isinstance(source, Source) else None for source in self.train]
        if not any(given):
            return None
        return [1.0 if weight is None else weight for weight in given]

    @property
    def held_out(self) -> list[bool]:
        """For each source of ``train`` whether its records may be held out."""
        return [not isinstance(source, Source) or source.hold_out for source in self.train]


class Data(Section):
    max_length: int = setting(2048, "longest record, prompt and answers together", "tokens", ge=8)
    too_long: Literal["cut", "keep", "refuse"] = setting(
        "cut",
        "records longer than max_length: cut at it, keep whole, or refuse as bad; counted in each "
        "case",
    )
    max_bad_fraction: float = setting(
        0.0, "tolerated fraction of bad records per domain; above it the job stops", ge=0, le=1
    )
    validation_fraction: float = setting(
        0.05, "records held out by hash where no validation is given", gt=0, lt=1
    )
    max_validation: int = setting(512, "held-out records measured per domain", "records", ge=1)
    max_train: int | dict[str, int] | None = setting(
        None,
        "training records used per domain, chosen by hash: one number for all, or one per domain "
        "name; none: all",
        "records",
    )
    contaminated: Literal["count", "remove", "ignore"] = setting(
        "count",
        "training records that ask one of the questions, or share 13 tokens in a row with one: "
        "count them, leave them out, or do not look",
    )
    near_duplicates: float | None = setting(
        None,
        "leave out training records that say nearly what another says, of any domain: by the part "
        "of their runs of five tokens that both have, such as 0.8; none: do not look",
        gt=0,
        le=1,
    )
    preference: Literal["chosen"] | None = setting(
        None,
        "chosen: records with `chosen` and `rejected` train on what was chosen; none: they are bad "
        "records",
    )
    fingerprint: Literal["files", "content"] = setting(
        "files",
        "how changed sources are noticed: by place, size and version or time of their files, which "
        "reads none of them, or by their content, which reads all at each start",
        results=False,
    )
    shards_at_once: int | None = setting(
        None,
        "shards of a domain's token store whose records are mixed at a time, for stores behind a "
        "URI that are larger than a machine's disk: it holds three times as many; none: all",
        "shards",
        ge=1,
    )
    chat_template: str | None = setting(
        None, "file with a Jinja chat template; none: the tokenizer's, else a plain one", path=True
    )
    chat_template_kwargs: dict[str, Any] = setting(
        dict, "values of the chat template's variables, such as {enable_thinking: false}"
    )

    @field_validator("max_train")
    @classmethod
    def _some(cls, value: int | dict[str, int] | None) -> int | dict[str, int] | None:
        values = (
            value.values() if isinstance(value, dict) else [value or 0] if value is not None else []
        )
        if min(values, default=1) < 1:
            raise ValueError(f"at least one record is needed; found {value}")
        return value

    def most_train(self, name: str) -> int | None:
        """The cap on the training records of domain ``name``, if there is one."""
        return self.max_train.get(name) if isinstance(self.max_train, dict) else self.max_train

    def split(self, name: str) -> dict[str, Any]:
        """What decides which records of domain ``name`` train and which measure, beside the records
        themselves: part of a cache's key.
        """
        return self.model_dump(include={"validation_fraction", "max_validation"}) | {
            "max_train": self.most_train(name)
        }
