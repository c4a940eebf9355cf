"""Keys of the job that makes domains out of unlabelled records."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from versatune_ray.settings.common import Paths, Section, setting


class Group(Section):
    """Domains out of one heap, by what the records say or by a judge."""

    sources: Paths = setting(
        list,
        "unlabelled records: files, folders, URIs or Hugging Face dataset ids; none: the training "
        "records of `domains`, which are grouped anew",
    )
    fields: dict[str, str] = setting(
        dict, "our name of a field → that of the records of `sources`, as domains.NAME.fields"
    )
    by: Literal["embedding", "judge"] = setting(
        "embedding",
        "embedding: k-means over vectors of the records; judge: the likeliest of `labels` by "
        "detection.judge",
    )
    labels: dict[str, str] = setting(
        dict,
        "judge: domain → what belongs to it, in words, at least two; none: those of `domains`",
    )
    confidence: float = setting(
        0.0,
        "judge: lowest probability of the likeliest label; a record below it is in no domain",
        ge=0,
        lt=1,
    )
    embedding: Literal["words", "base", "sentences"] = setting(
        "words",
        "words: weighted counts of words in fewer dimensions (TF-IDF, then SVD), no model; base: "
        "mean hidden state of a language model; sentences: a sentence-transformers model",
    )
    model: str | None = setting(
        None,
        "base, sentences: a folder or a Hugging Face id; none: model.path (base alone)",
        path=True,
    )
    max_tokens: int = setting(
        256, "base: tokens of a record that are read; sentences has its own", "tokens", ge=8
    )
    depth: float = setting(
        0.5, "base: after which part of the layers the state is taken", gt=0, le=1
    )
    dimensions: int = setting(
        128, "of the vectors on which groups are found; at most those of the model", ge=2
    )
    domains: int | None = setting(
        None, "number of groups; none: of `least` to `most`, that of the highest silhouette", ge=2
    )
    least: int = setting(2, "fewest groups that are tried", ge=2)
    most: int = setting(10, "most groups that are tried", ge=2)
    sample: int = setting(
        40_000,
        "records, drawn by the seed, on which groups are found; the others go to the nearest",
        "records",
        ge=10,
    )
    batch_size: int = setting(64, "records embedded at a time", "records", ge=1, results=False)
    workers: int = setting(1, "embedding workers, the most", ge=1, results=False)
    cpus: int = setting(1, "CPUs (threads) per worker", ge=1, results=False)

    @model_validator(mode="after")
    def _ordered(self) -> Group:
        if self.least > self.most:
            raise ValueError(f"least: {self.least} is more than most={self.most}")
        if len(self.labels) == 1:
            raise ValueError(f"labels: {next(iter(self.labels))!r} is the only one; name two")
        return self
