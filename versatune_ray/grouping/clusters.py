"""Groups of vectors: k-means on unit vectors, with the number of groups by silhouette. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

_STARTS = 4  # of k-means, of which the best is kept
_COMPARED = 3000  # vectors of which every pair is compared for a silhouette


@dataclass(frozen=True)
class Groups:
    """mean [d]: taken from every vector; axes [d, dimensions]: onto which they are turned; centres
    [k, dimensions]; silhouettes: number of groups → mean silhouette, of those that were tried.
    """

    mean: Vectors
    axes: Vectors
    centres: Vectors
    silhouettes: dict[int, float]

    def place(self, vectors: Vectors) -> Vectors:
        """Unit vectors, [n, dimensions], among which groups are found."""
        return unit((vectors - self.mean) @ self.axes)

    def assign(self, vectors: Vectors) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The nearest centre of each of n vectors, and the cosine to it."""
        placed, centres = self.place(vectors), self.centres
        # of unit vectors, the nearest centre is that of the largest product less half its square
        scores = placed @ centres.T - (centres**2).sum(axis=1) / 2
        group = scores.argmax(axis=1)
        cosine = (placed * unit(centres)[group]).sum(axis=1)
        return group.astype(np.int64), cosine.astype(np.float64)


def unit(vectors: NDArray[Any]) -> Vectors:
    """Each row by its length; one of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Vectors = (vectors / np.where(length > 0, length, 1)).astype(np.float32)
    return found


def find_groups(
    vectors: Vectors, counts: Sequence[int], dimensions: int, seed: int, *, centred: bool
) -> Groups:
    """Groups of ``vectors`` [n, d]: of the numbers of groups in ``counts``, the one with the
    highest mean silhouette (Rousseeuw 1987).

    Args:
        dimensions: principal ones that are kept, where there are more.
        centred: the mean is taken from the vectors first. Hidden states of language models share
            one direction, which says nothing about what they mean.

    Raises:
        ValueError: fewer distinct vectors than groups.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    mean = vectors.mean(axis=0) if centred else np.zeros(vectors.shape[1], np.float32)
    axes = np.eye(vectors.shape[1], dtype=np.float32)
    if vectors.shape[1] > dimensions:
        axes = principal_axes(vectors - mean, dimensions)
    placed = unit((vectors - mean) @ axes)
    distinct = len(np.unique(placed, axis=0))
    tried = [count for count in counts if count <= distinct]
    if not tried:
        raise ValueError(f"{len(vectors)} records with {distinct} distinct vector(s)")
    compared = np.random.default_rng(seed).permutation(len(placed))[:_COMPARED]
    silhouettes: dict[int, float] = {}
    best = None
    for count in tried:
        found = KMeans(count, n_init=_STARTS, random_state=seed).fit(placed)
        labels = found.labels_[compared]
        several = 1 < len(np.unique(labels)) < len(labels)
        score = float(silhouette_score(placed[compared], labels)) if several else -1.0
        silhouettes[count] = score
        if best is None or score > best[0]:
            best = score, found.cluster_centers_
    assert best is not None
    return Groups(
        mean.astype(np.float32), axes.astype(np.float32), best[1].astype(np.float32), silhouettes
    )


def principal_axes(vectors: Vectors, count: int) -> Vectors:
    """Directions of most variation of centred vectors [n, d], orthonormal columns [d, count]; each
    turned so that its largest part is above 0.
    """
    _, directions = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors.astype(np.float64))
    axes = directions[:, ::-1][:, :count]
    largest = np.abs(axes).argmax(axis=0)
    found: Vectors = (axes * np.sign(axes[largest, np.arange(axes.shape[1])])).astype(np.float32)
    return found
