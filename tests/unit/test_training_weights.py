"""What a record says of its own weight scales its loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from versatune_ray.domains import Batch, Records, TokenStore, TokenStoreWriter
from versatune_ray.training import batches


def test_the_weight_of_a_record_scales_the_weights_of_its_tokens(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path / "store") as writer:
        writer.append(
            Batch(
                tokens=np.array([1, 2, 3, 4, 5], np.int32),
                mask=np.array([False, True, True, False, True]),
                lengths=np.array([3, 2]),
                hashes=np.array([1, 2], np.uint64),
                response_bytes=np.array([2, 1]),
                locations=np.zeros((2, 2), np.int64),
                weights=np.array([1, 0.5], np.float32),
            )
        )
    records = Records(TokenStore(tmp_path / "store"), np.arange(2))
    samples = batches.Samples([records], np.zeros(2, np.int64), np.arange(2))
    layout = batches.Layout(
        attention="padded", parameters=1, width=1, rank=0, world=1, equal=False, pinned=False
    )
    collated = layout.collate(samples, np.array([4.0]))
    assert collated.inputs["weights"].tolist() == [4, 4, 2]
