"""Token stores of the domains, opened and split: what every worker does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from versatune_ray.domains.keys import identity
from versatune_ray.domains.split import (
    DomainData,
    DomainStores,
    SourcePart,
    split,
    validation_store,
)
from versatune_ray.domains.store import CopiedRecords, Records, TokenStore, mapped
from versatune_ray.runs.cache import cached, write_json
from versatune_ray.runs.storage import fetch
from versatune_ray.settings import Data

SIMILAR = "similar.npy"  # bool [n], of a training store
_FORMAT = 2  # of a split that is kept
_COLUMNS = ("lengths", "response_tokens", "response_bytes", "weights")  # of records, kept with it
_MANY = 1 << 20  # records whose split takes longer than a moment, and memory in every worker


class DomainPaths(NamedTuple):
    """Folders of one domain's token stores; ``validation`` is None where a part of ``train`` is to
    be held out. ``sources``: in the order of the store, where they are not all alike. ``without``:
    the folder that says which training records hold what is asked (see ``contamination``), where
    they are left out. ``similar``: the one that says which resemble another (see
    ``near_duplicates``).
    """

    train: Path
    validation: Path | None
    sources: tuple[SourcePart, ...] | None = None
    without: Path | None = None
    similar: Path | None = None

    @property
    def folders(self) -> list[Path]:
        """Those that are there."""
        return [self.train] if self.validation is None else [self.train, self.validation]

    @property
    def key(self) -> list[Any]:
        """What stands for records and sources in a cache's key."""
        stores: list[Any] = [identity(self.train), self.validation and identity(self.validation)]
        stores += [] if self.sources is None else [self.sources]
        stores += [] if self.without is None else [self.without.name]
        return stores if self.similar is None else [*stores, self.similar.parts[-2:]]


def load_domains(paths: Mapping[str, DomainPaths], data: Data) -> dict[str, DomainData]:
    """Open the stores and split them: what every worker does, with the same result everywhere. Of
    many records the split is kept in the cache that the stores are in, for all who need it.
    """
    stores = {
        name: DomainStores(
            TokenStore(path.train),
            None if path.validation is None else TokenStore(path.validation),
            path.sources,
            None if path.without is None else np.load(fetch(path.without) / "contaminated.npy"),
            None if path.similar is None else np.load(fetch(path.similar) / SIMILAR),
        )
        for name, path in paths.items()
    }
    found = _kept_split(paths, stores, data)
    if data.shards_at_once is None:
        return found
    return {
        name: replace(one, validation=CopiedRecords(one.validation.store, one.validation.indices))
        for name, one in found.items()
    }


def _kept_split(
    paths: Mapping[str, DomainPaths], stores: Mapping[str, DomainStores], data: Data
) -> dict[str, DomainData]:
    folders = {path.train.parent for path in paths.values()}
    records = sum(len(one.train) + len(validation_store(one)) for one in stores.values())
    if records < _MANY or len(folders) > 1:
        return split(stores, data)

    def build(work: Path) -> None:
        said = {}
        for number, (name, found) in enumerate(split(stores, data).items()):
            for side in ("train", "validation"):
                indices = getattr(found, side).indices
                small = indices.max() < 1 << 32
                np.save(work / f"{number}.{side}.npy", indices.astype("u4" if small else "i8"))
                for column in _COLUMNS:
                    values = getattr(getattr(found, side), column)
                    np.save(work / f"{number}.{side}.{column}.npy", values)
            said[name] = [found.counts, found.account]
        write_json(work / "domains.json", said)

    parts = {name: [path.key, data.split(name)] for name, path in paths.items()}
    (place,) = folders
    kept, _ = cached(place.parent, "splits", {"format": _FORMAT, "domains": parts}, build)
    said = json.loads((kept / "domains.json").read_text(encoding="utf-8"))
    result = {}
    for number, (name, one) in enumerate(stores.items()):
        train, held_out = (
            Records(
                store,
                mapped(kept / f"{number}.{side}.npy"),
                {column: mapped(kept / f"{number}.{side}.{column}.npy") for column in _COLUMNS},
            )
            for side, store in (("train", one.train), ("validation", validation_store(one)))
        )
        result[name] = DomainData(name, train, held_out, *said[name])
    return result
