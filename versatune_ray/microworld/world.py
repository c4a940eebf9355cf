"""A small consistent world of made-up facts in six domains, so that *knowledge* can be checked by
exact match.

Every fact ties a made-up entity to a value (a statute to its penalty, a substance to its melting
point, …). From the facts come prose for pre-training, question/answer records for fine-tuning,
held-out records, and a question set. A held-out question asks for a known fact in words that no
training record used for that fact, so an exact match shows knowledge and not an echo.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from versatune_ray.settings import MICROWORLD

# Skewed like the published distributions, with every domain large enough to be measured.
MIXTURE = {
    "law": 0.10,
    "medicine": 0.14,
    "finance": 0.08,
    "science": 0.16,
    "code": 0.22,
    "general": 0.30,
}

_ONSETS = [
    "b",
    "br",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u"]
_CODAS = ["l", "m", "n", "r", "s", "x"]


@dataclass(frozen=True)
class DomainSpec:
    """How one domain speaks: ``{e}`` is the entity, ``{v}`` the value."""

    description: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


SPECS = {
    "law": DomainSpec(
        "statutes and their penalties",
        (
            "Under the {e} Act, an offender faces {v}.",
            "The court held that a breach of the {e} Act carries {v}.",
            "Parliament set {v} as the penalty in the {e} Act.",
            "Section 1 of the {e} Act provides for {v}.",
        ),
        (
            "What is the penalty under the {e} Act?",
            "Which penalty does the {e} Act set?",
            "What does a breach of the {e} Act carry?",
            "What does an offender face under the {e} Act?",
            "Name the penalty in the {e} Act.",
            "What does Section 1 of the {e} Act provide for?",
        ),
    ),
    "medicine": DomainSpec(
        "illnesses and their remedies",
        (
            "Patients with {e} fever are treated with {v}.",
            "Physicians prescribe {v} against {e} fever.",
            "The remedy for {e} fever is {v}.",
            "A dose of {v} relieves the symptoms of {e} fever.",
        ),
        (
            "What is the remedy for {e} fever?",
            "How is {e} fever treated?",
            "What do physicians prescribe against {e} fever?",
            "What relieves the symptoms of {e} fever?",
            "Name the treatment of {e} fever.",
            "Which medicine helps patients with {e} fever?",
        ),
    ),
    "finance": DomainSpec(
        "financial instruments and their rates",
        (
            "The {e} bond pays interest of {v}.",
            "Investors in the {e} bond earn {v} a year.",
            "The coupon of the {e} bond is {v}.",
            "Markets priced the {e} bond at {v}.",
        ),
        (
            "What is the coupon of the {e} bond?",
            "What interest does the {e} bond pay?",
            "How much do investors in the {e} bond earn?",
            "At what rate is the {e} bond priced?",
            "Name the yearly rate of the {e} bond.",
            "What does the {e} bond pay?",
        ),
    ),
    "science": DomainSpec(
        "substances and their physical constants",
        (
            "The substance {e} melts at {v}.",
            "In the laboratory, {e} was seen to melt at {v}.",
            "The melting point of {e} is {v}.",
            "Heated to {v}, the crystal {e} turns liquid.",
        ),
        (
            "What is the melting point of {e}?",
            "At what temperature does {e} melt?",
            "When does the crystal {e} turn liquid?",
            "How hot must {e} be to melt?",
            "Name the melting point of {e}.",
            "To what must {e} be heated to melt?",
        ),
    ),
    "code": DomainSpec(
        "tiny functions and what they return",
        (
            "def {e}(x): return {v}",
            "# {e} computes {v}\ny = {e}(x)",
            ">>> help({e})\n{e}(x) -> {v}",
            "assert {e}(x) == {v}",
        ),
        (
            "What does {e}(x) return?",
            "What does the function {e} compute?",
            "Complete: def {e}(x): return",
            "Which expression equals {e}(x)?",
            "Name the value of {e}(x).",
            "What is the body of {e}(x)?",
        ),
    ),
    "general": DomainSpec(
        "places and people, everyday talk",
        (
            "{v} has lived in the town of {e} for years.",
            "The mayor of {e} is called {v}.",
            "In {e} everybody knows {v}, the mayor.",
            "Last summer {v} opened the fair in {e}.",
        ),
        (
            "Who is the mayor of {e}?",
            "What is the mayor of {e} called?",
            "Who opened the fair in {e}?",
            "Whom does everybody in {e} know?",
            "Name the mayor of {e}.",
            "Who has lived in {e} for years?",
        ),
    ),
}


@dataclass(frozen=True)
class Fact:
    domain: str
    entity: str
    value: str


class World:
    """All facts of one seed; everything it yields is a pure function of ``(facts, seed)``."""

    def __init__(self, facts: int, seed: int = 0):
        self.seed = seed
        rng = np.random.default_rng([seed, 1])
        names = _names(rng, 2 * facts * len(MICROWORLD))
        self.facts = {
            domain: [Fact(domain, *_entity_and_value(domain, names, rng)) for _ in range(facts)]
            for domain in MICROWORLD
        }

    def texts(self, domain: str, rows: int) -> Iterator[str]:
        """Prose for pre-training: each text states two or three facts of one domain."""
        rng = np.random.default_rng([self.seed, 2, MICROWORLD.index(domain)])
        facts, statements = self.facts[domain], SPECS[domain].statements
        for _ in range(rows):
            chosen = rng.choice(len(facts), size=int(rng.integers(2, 4)), replace=False)
            sentences = [
                statements[rng.integers(len(statements))].format(
                    e=facts[i].entity, v=facts[i].value
                )
                for i in chosen
            ]
            yield ("\n" if domain == "code" else " ").join(sentences)

    def records(self, domain: str) -> dict[str, list[dict[str, str]]]:
        """``train``, ``validation`` and ``questions``: per fact, four, one and one of the six ways
        to ask for it.
        """
        rng = np.random.default_rng([self.seed, 3, MICROWORLD.index(domain)])
        parts: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "questions": []}
        for fact in self.facts[domain]:
            order = rng.permutation(len(SPECS[domain].questions))
            for place, way in enumerate(order):
                part = "questions" if place == 0 else "validation" if place == 1 else "train"
                question = SPECS[domain].questions[way].format(e=fact.entity)
                parts[part].append({"question": question, "answer": fact.value})
        return parts

    def write(self, folder: Path) -> None:
        """Write every domain's records as ``{domain}.{part}.jsonl``."""
        for domain in MICROWORLD:
            for part, records in self.records(domain).items():
                text = "".join(json.dumps(record) + "\n" for record in records)
                (folder / f"{domain}.{part}.jsonl").write_text(text, encoding="utf-8")


def _names(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Distinct two-syllable words such as ``brelox``."""
    seen: dict[str, None] = {}
    while len(seen) < count:
        onset, coda = rng.choice(_ONSETS, size=2), str(rng.choice(_CODAS))
        vowels = rng.choice(_VOWELS, size=2)
        seen[f"{onset[0]}{vowels[0]}{onset[1]}{vowels[1]}{coda}"] = None
    return iter(seen)


def _entity_and_value(
    domain: str, names: Iterator[str], rng: np.random.Generator
) -> tuple[str, str]:
    name = next(names)

    def pick(*choices: str) -> str:
        return str(rng.choice(choices))

    if domain == "law":
        return (
            name.capitalize(),
            f"{rng.integers(2, 31)} {pick('days', 'months', 'years')} of "
            f"{pick('prison', 'labour', 'exile', 'arrest')}",
        )
    if domain == "medicine":
        return (
            name.capitalize(),
            f"{pick('red', 'blue', 'bitter', 'dried', 'sweet')} "
            f"{pick('sage', 'mint', 'clover', 'thyme', 'willow', 'nettle')}",
        )
    if domain == "finance":
        return name.capitalize(), f"{rng.integers(1, 10)}.{rng.integers(0, 10)} percent"
    if domain == "science":
        return name, f"{rng.integers(2, 100) * 10} degrees"
    if domain == "code":
        return name, f"x {pick('+', '-', '*', '%')} {rng.integers(2, 40)}"
    return (
        name.capitalize(),
        f"{pick('Anna', 'Boris', 'Clara', 'David', 'Elena', 'Frank', 'Greta', 'Henry')} "
        f"{next(names).capitalize()}",
    )
