"""Token stores → what is trained on and what is measured, per domain, with every record accounted
for.

``read = bad + left_out + (train − train_repeated) + train_unused + validation + duplicates_removed
+ contaminated_removed + similar_removed + validation_duplicates + validation_unused`` holds for
each domain; ``near_duplicates_removed``, which ask what is held out, are part of
``duplicates_removed``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.store import Records, TokenStore
from versatune_ray.errors import UserError
from versatune_ray.settings import Data

Indices = NDArray[np.int64]
_GENERAL = 10  # records that ask the same and are still taken for duplicates
_MIX = np.uint64(0x9E3779B97F4A7C15)


class SourcePart(NamedTuple):
    """A source of ``train``: its weight, which all of a domain have or none; how many inputs of the
    store are its; whether its records may be held out.
    """

    weight: float | None
    inputs: int
    hold_out: bool


class DomainStores(NamedTuple):
    train: TokenStore
    validation: TokenStore | None
    sources: tuple[SourcePart, ...] | None = None
    without: NDArray[np.bool_] | None = None
    similar: NDArray[np.bool_] | None = None

    @property
    def weights(self) -> list[float]:
        """Of the sources; empty where the records of all count alike."""
        return [one.weight for one in self.sources or () if one.weight is not None]

    def per_record(self, of_sources: Sequence[Any]) -> NDArray[Any]:
        """What ``of_sources`` has for the source of each training record, [n]."""
        ends = np.cumsum([one.inputs for one in self.sources or ()])
        source = np.searchsorted(ends, self.train.inputs, side="right")
        return np.asarray(of_sources)[source]


@dataclass(frozen=True)
class DomainData:
    """One domain, ready to train. ``counts`` has the terms of the module's identity, and ``cut``
    and ``over_long_kept``; ``account`` says how many records had which shape, which of their
    fields were not read, and why some were left out.
    """

    name: str
    train: Records
    validation: Records
    counts: dict[str, int]
    account: dict[str, dict[str, int]] = field(default_factory=dict)


def longest(data: DomainData) -> int:
    """Tokens of the longest record that trains or measures."""
    return max(int(part.lengths.max(initial=0)) for part in (data.train, data.validation))


def split(domains: Mapping[str, DomainStores], data: Data) -> dict[str, DomainData]:
    """Decide for each record whether it trains, measures, or is left out.

    Where no validation is given, a record is held out iff its content hash / 2⁶⁴ <
    ``data.validation_fraction``, and its source allows it: independent of order and of any seed.
    Copies of a record, and records that ask the same (see ``_groups``), share a side: that of one
    of them. (Where that leaves one side empty, the lowest hash is held out, or the highest trains.)
    Held-out copies count once, and the ``data.max_validation`` lowest hashes are measured. A
    training record whose content or question is held out in any domain is removed from training,
    measured or not. Of the others, the ``data.max_train`` lowest hashes train. Where sources have
    weights, each gives its part of as many samples (see ``_weighted``).

    Raises:
        UserError: a domain has too few distinct records for both sides.
    """
    parts = {
        name: _parts(name, stores, data.validation_fraction) for name, stores in domains.items()
    }
    unique = {
        name: _first_of_each(validation_store(domains[name]), held_out)
        for name, (_, held_out) in parts.items()
    }
    there = {name: validation_store(stores) for name, stores in domains.items()}
    contents, prompts = (
        np.unique(np.concatenate([getattr(there[name], of)[rows] for name, rows in unique.items()]))
        for of in ("hashes", "prompts")
    )
    result = {}
    for name, stores in domains.items():
        train, held_out = parts[name]
        copied = np.isin(stores.train.hashes[train], contents)
        asked = ~_is_general(stores.train)[train] & np.isin(stores.train.prompts[train], prompts)
        kept = train[~(copied | asked)]
        removed = len(train) - len(kept)
        if stores.without is not None:
            kept = kept[~stores.without[kept]]
        if not len(kept):
            raise UserError(
                f"domain {name!r}: all {len(train)} training records are held out in this or "
                f"another domain, or hold what is asked; mend domains.{name}.train, "
                f"domains.{name}.validation or domains.{name}.questions"
            )
        most = data.most_train(name)
        if stores.weights:
            used = _weighted(name, stores, kept, most)
        else:
            used = kept if most is None else _lowest(stores.train, kept, most)
        distinct = len(np.unique(used)) if stores.weights else len(used)
        store = there[name]
        by_hash = unique[name][np.argsort(store.hashes[unique[name]])]
        measured = np.sort(by_hash[: data.max_validation])
        metas = [part.meta for part in (stores.train, stores.validation) if part is not None]
        counts = {
            "read": sum(meta["read"] for meta in metas),
            "bad": sum(sum(meta["bad"].values()) for meta in metas),
            "left_out": sum(sum(meta["left_out"].values()) for meta in metas),
            "train": len(used),
            "train_repeated": len(used) - distinct,
            "train_unused": len(kept) - distinct,
            "validation": len(measured),
            "duplicates_removed": removed,
            "contaminated_removed": len(train) - removed - len(kept),
            "near_duplicates_removed": int((asked & ~copied).sum()),
            "similar_removed": 0 if stores.similar is None else int(stores.similar.sum()),
            "validation_duplicates": len(held_out) - len(by_hash),
            "validation_unused": len(by_hash) - len(measured),
            "cut": sum(meta["cut"] for meta in metas),
            "over_long_kept": sum(meta["over_long_kept"] for meta in metas),
        }
        result[name] = DomainData(
            name, Records(stores.train, used), Records(store, measured), counts, _account(metas)
        )
    return result


def _parts(name: str, stores: DomainStores, fraction: float) -> tuple[Indices, Indices]:
    """Indices of the records to train on (into the train store) and of those held out (into the
    validation store).
    """
    everything = np.arange(len(stores.train), dtype=np.int64)
    if stores.similar is not None:
        everything = everything[~stores.similar]
    if stores.validation is not None:
        if not len(everything) or not len(stores.validation):
            raise UserError(
                f"domain {name!r} has {len(everything)} usable records to train on and "
                f"{len(stores.validation)} held out{_alike(stores)}"
            )
        return everything, np.arange(len(stores.validation), dtype=np.int64)
    hashes = _groups(stores.train)[everything]
    distinct = len(np.unique(hashes))
    if distinct < 2:
        raise UserError(
            f"domain {name!r} has only {distinct} usable records that differ; it needs 2: one to "
            f"train on, one held out{_alike(stores)}"
        )
    allowed = np.ones(len(everything), dtype=np.bool_)
    if stores.sources is not None:
        allowed = stores.per_record([one.hold_out for one in stores.sources])[everything]
        if not allowed.any():
            raise UserError(
                f"domains.{name}: no source with usable records may be held out, so there is "
                f"nothing to measure; name domains.{name}.validation"
            )
    held_out = allowed & (hashes < np.uint64(int(fraction * 2.0**64)))
    if not held_out.any():
        held_out = allowed & (hashes == hashes[allowed].min())
    if held_out.all():
        held_out = hashes != hashes.max()
    return everything[~held_out], everything[held_out]


def _alike(stores: DomainStores, among: NDArray[np.bool_] | bool = True) -> str:
    """What to say of records that are left out because they resemble others, where some are."""
    count = 0 if stores.similar is None else int((stores.similar & among).sum())
    said = f"; data.near_duplicates leaves out {count:,}: raise it, or set it to null"
    return said if count else ""


def _lowest(store: TokenStore, rows: Indices, count: int) -> Indices:
    return np.sort(rows[np.argsort(store.hashes[rows], kind="stable")[:count]])


def _weighted(
    name: str,
    stores: DomainStores,
    kept: Indices,
    most: int | None,
) -> Indices:
    """Samples of which each source gives the part that its weight is of the sum of all: as many as
    there are records (at most ``most``). A source that has too few is repeated whole as often as
    goes, and what is left of its part are its records of the lowest hashes; one that has too many
    gives those of the lowest hashes. No chance is involved.
    """
    weights = np.array(stores.weights)
    source_of = stores.per_record(range(len(weights)))
    source = source_of[kept]
    total = len(kept) if most is None else min(most, len(kept))
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    parts = []
    for place, count in enumerate(counts):
        rows = kept[source == place]
        if not len(rows):
            raise UserError(
                f"domains.{name}.train: source {place + 1} of {len(weights)} has no record to "
                f"train on, so it cannot give its part{_alike(stores, source_of == place)}"
            )
        passes, rest = divmod(int(count), len(rows))
        parts += [*[rows] * passes, _lowest(stores.train, rows, rest)]
    return np.sort(np.concatenate(parts))


def _account(metas: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for kind in ("shapes", "unused_fields", "left_out", "template_drops"):
        counts: Counter[str] = Counter()
        for meta in metas:
            counts.update(meta[kind])
        total[kind] = dict(counts)
    return total


def _is_general(store: TokenStore) -> NDArray[np.bool_]:
    """Whether more than ``_GENERAL`` records, or all, ask what a record asks: then it is an
    instruction, and they are no duplicates; bool [n].
    """
    _, group, counts = np.unique(store.prompts, return_inverse=True, return_counts=True)
    found: NDArray[np.bool_] = (counts[group] > _GENERAL) | (len(counts) == 1)
    return found


def _groups(store: TokenStore) -> NDArray[np.uint64]:
    """Content hashes [n] for the split; of records that ask the same, that of one of them."""
    hashes = store.hashes
    keys = np.where(_is_general(store), hashes, store.prompts)
    with np.errstate(over="ignore"):
        mixed = hashes * _MIX  # which of them it is does not depend on which side it is on
    order = np.lexsort((mixed, keys))
    _, first, group = np.unique(keys[order], return_index=True, return_inverse=True)
    found = np.empty_like(hashes)
    found[order] = hashes[order][first][group]
    return found


def validation_store(stores: DomainStores) -> TokenStore:
    return stores.train if stores.validation is None else stores.validation


def _first_of_each(store: TokenStore, rows: Indices) -> Indices:
    _, first = np.unique(store.hashes[rows], return_index=True)
    return rows[np.sort(first)]
