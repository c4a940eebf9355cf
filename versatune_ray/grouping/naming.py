"""What groups of texts are called: their most telling words, by class-based TF-IDF (Grootendorst
2022, arXiv 2203.05794). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORD = r"(?u)\b[^\W\d_]{3,}\b"


def telling_words(
    texts: Sequence[str], group: NDArray[np.int64], count: int, most: int = 10
) -> list[list[str]]:
    """The ``most`` most telling words of each of ``count`` groups, best first.

    A word w of group g weighs tf(w, g) / words of g · ln(1 + A / f(w)), for the number of texts
    tf(w, g) of the group that have it, f(w) of all, and the mean A of words per group. Counting
    texts and not occurrences keeps one long text from naming its group.

    Args:
        group: of each text, int [n].
    """
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(binary=True, stop_words="english", token_pattern=WORD)
    try:
        found = words.fit_transform(texts)
    except ValueError:  # no word in any of them
        return [[] for _ in range(count)]
    names = words.get_feature_names_out()
    member = group[None, :] == np.arange(count)[:, None]
    frequency = np.asarray((found.T @ member.T.astype(np.float64)).T)  # [count, words]
    size = frequency.sum(axis=1, keepdims=True)
    weight = frequency / np.where(size > 0, size, 1)
    weight = weight * np.log1p(size.mean() / frequency.sum(axis=0))
    return [
        [str(names[word]) for word in np.argsort(-row, kind="stable")[:most] if row[word] > 0]
        for row in weight
    ]


def names_of(words: Sequence[Sequence[str]]) -> list[str]:
    """A name of two words for each group, of more where two would be called the same; ``group-3``
    for the third, where it has none.
    """
    names: list[str] = []
    for number, telling in enumerate(words, 1):
        fallback = f"group-{number}"
        choices = ["-".join(telling[:length]) for length in range(2, len(telling) + 1)]
        free = (name for name in choices if name not in names and len(name.encode()) <= 100)
        names.append(next(free, fallback))
    return names
