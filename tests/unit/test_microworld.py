"""The world is a pure function of its seed, and its parts do not leak into one another."""

from __future__ import annotations

from versatune_ray.microworld.world import MIXTURE, SPECS, World
from versatune_ray.settings import MICROWORLD


def test_the_same_seed_is_the_same_world_and_another_seed_another() -> None:
    assert World(10, 1).records("law") == World(10, 1).records("law")
    assert list(World(10, 1).texts("code", 5)) == list(World(10, 1).texts("code", 5))
    assert World(10, 1).records("law") != World(10, 2).records("law")


def test_every_fact_is_asked_in_six_ways_split_over_the_parts_without_repeats() -> None:
    for domain in MICROWORLD:
        parts = World(25).records(domain)
        assert {part: len(rows) for part, rows in parts.items()} == {
            "train": 100,
            "validation": 25,
            "questions": 25,
        }
        questions = [row["question"] for rows in parts.values() for row in rows]
        assert len(set(questions)) == len(questions) == 25 * len(SPECS[domain].questions)


def test_every_answer_asked_for_can_be_learned_from_training_records() -> None:
    world = World(25)
    for domain in MICROWORLD:
        parts = world.records(domain)
        taught = {row["answer"] for row in parts["train"]}
        assert {row["answer"] for row in parts["questions"]} <= taught


def test_entities_belong_to_one_domain_and_texts_speak_of_them_alone() -> None:
    world = World(30)
    entities = [fact.entity for facts in world.facts.values() for fact in facts]
    assert len(set(entities)) == len(entities)
    for domain in MICROWORLD:
        own = {fact.entity for fact in world.facts[domain]}
        assert all(any(entity in text for entity in own) for text in world.texts(domain, 20))


def test_the_known_mixture_is_a_distribution() -> None:
    assert sum(MIXTURE.values()) == 1
    assert set(MIXTURE) == set(MICROWORLD)
