"""The terms that keep a model near its base: their gradients against autograd on the plain models,
what is reported, and exact resume.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from versatune_ray.domains import DomainData
from versatune_ray.errors import UserError
from versatune_ray.settings import Training, semantics
from versatune_ray.settings.loading import parse
from versatune_ray.settings.recipe import Recipe
from versatune_ray.training.batches import Samples
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.memory import estimate
from versatune_ray.training.model import load_model, with_frozen
from versatune_ray.training.trainer import Trainer

RECIPE = Recipe(
    steps=6,
    batch_size=6,
    micro_batch_tokens=40,
    learning_rate=1e-2,
    warmup=0.0,
    weight_decay=0.0,
    max_grad_norm=0.0,
    seed=3,
    kl_records=5,
)
SHARES = np.array([0.7, 0.3])


def trainer(model: Path, data: list[DomainData], recipe: Recipe, lora: bool = False) -> Trainer:
    loaded = load_model(str(model))
    base = load_model(str(model)) if recipe.kl and not lora else None
    if lora:
        loaded = with_frozen(loaded, Training(lora={"rank": 2}), 0)
    return Trainer(loaded, data, recipe, torch.device("cpu"), base=base)


def moved(made: Trainer) -> Trainer:
    """The trained weights, moved a little from the base's."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parallel.module.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return made


def gradients(made: Trainer) -> dict[str, torch.Tensor]:
    named = made.model.named_parameters()
    return {name: one.grad for name, one in named if one.grad is not None}


def plain_logits(model: Any, record: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
    """Log-probabilities before every token that carries loss, by the library's own decoder: the
    head's forward pass is ours.
    """
    tokens, mask = record
    hidden = model.get_decoder()(torch.from_numpy(tokens.astype(np.int64))[None])[0][0, :-1]
    logits = hidden @ model.get_output_embeddings().weight.T
    return functional.log_softmax(logits[torch.from_numpy(mask[1:].copy())], -1)


def test_l2_adds_the_gradient_of_half_the_squared_distance(
    tiny_model: Path, data: list[DomainData]
) -> None:
    made = moved(trainer(tiny_model, data, replace(RECIPE, l2=0.3)))
    base = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    own = dict(made.model.named_parameters())
    square = sum(((one - base[name].detach()) ** 2).sum() for name, one in own.items())
    expected = torch.autograd.grad(0.3 / 2 * square, list(own.values()))
    distance = made._l2.add_gradient(made.parallel)
    assert float(distance) == pytest.approx(float(square.detach().sqrt()), rel=1e-5)
    for (name, found), wanted in zip(gradients(made).items(), expected, strict=True):
        torch.testing.assert_close(found, wanted, msg=name)


def test_with_adapters_l2_is_that_of_the_merged_weights(
    tiny_model: Path, data: list[DomainData]
) -> None:
    made = moved(trainer(tiny_model, data, replace(RECIPE, l2=0.3), lora=True))
    layers = [part for part in made.model.modules() if hasattr(part, "lora_A")]
    updates = [
        part.scaling["default"] * part.lora_B["default"].weight @ part.lora_A["default"].weight
        for part in layers
    ]
    square = sum((update**2).sum() for update in updates)
    (0.3 / 2 * square).backward()
    expected = {name: one.clone() for name, one in gradients(made).items()}
    made.model.zero_grad()
    distance = made._l2.add_gradient(made.parallel)
    assert float(distance) == pytest.approx(float(square.detach().sqrt()), rel=1e-5)
    found = gradients(made)
    assert found.keys() == expected.keys() and len(found) == 2 * len(layers)
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, msg=name)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("domain", [None, "code"])
def test_kl_adds_the_gradient_of_its_mean_over_response_tokens(
    tiny_model: Path, data: list[DomainData], lora: bool, domain: str | None
) -> None:
    recipe = replace(RECIPE, kl=0.7, kl_domain=domain)
    made = moved(trainer(tiny_model, data, recipe, lora))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    drawn = made._kl.draw(recipe, 4)
    assert set(drawn.domain) == ({1} if domain else {0, 1}) and len(drawn) == 5
    divergences = []
    for one, index in zip(drawn.domain, drawn.index, strict=True):
        record = data[one].train[int(index)]
        with torch.no_grad():
            log_p = plain_logits(base, record)
        log_q = plain_logits(made.model, record)
        divergences.append((log_p.exp() * (log_p - log_q)).sum(-1))
    mean = torch.cat(divergences).mean()
    names = [name for name, one in made.model.named_parameters() if one.requires_grad]
    own = [one for one in made.model.parameters() if one.requires_grad]
    expected = dict(zip(names, torch.autograd.grad(0.7 * mean, own), strict=True))
    assert float(made._kl.backward(recipe, 4)) == pytest.approx(float(mean), rel=1e-4)
    for name, found in gradients(made).items():
        torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=1e-4, msg=name)
    assert gradients(made).keys() == expected.keys()


def test_weights_of_records_weigh_their_kl_and_leave_it_a_mean(
    tiny_model: Path, data: list[DomainData], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, kl=0.7)
    made = moved(trainer(tiny_model, data, recipe))
    plain = float(made._kl.backward(recipe, 4))
    column = Samples._column
    for weight, expected in ((0.25, plain), (0.0, 0.0)):
        monkeypatch.setattr(
            Samples,
            "_column",
            lambda self, name, kind=np.int64, by=weight: (
                column(self, name, kind) * (by if name == "weights" else 1)
            ),
        )
        assert float(made._kl.backward(recipe, 4)) == pytest.approx(expected, rel=1e-5)


def test_at_the_base_neither_term_moves_anything_and_the_loss_is_told_apart(
    tiny_model: Path, data: list[DomainData]
) -> None:
    plain, kept = (
        trainer(tiny_model, data, replace(RECIPE, kl=kl, l2=l2)) for kl, l2 in ((0, 0), (5, 5))
    )
    assert plain.step(SHARES) == pytest.approx(kept.step(SHARES), rel=1e-6)
    assert plain.last.terms == {} and plain.last.norm == pytest.approx(kept.last.norm, rel=1e-5)
    assert kept.last.terms == {"kl_to_base": pytest.approx(0, abs=1e-6), "distance_to_base": 0}
    kept.step(SHARES)
    assert kept.last.terms["kl_to_base"] > 0 and kept.last.terms["distance_to_base"] > 0


def test_the_terms_hold_a_model_back(tiny_model: Path, data: list[DomainData]) -> None:
    def last(**terms: float) -> dict[str, float]:
        made = trainer(tiny_model, data, replace(RECIPE, **terms))
        for _ in range(6):
            made.step(SHARES)
        return made.last.terms

    assert last(kl=20)["kl_to_base"] < last(kl=1e-9)["kl_to_base"] / 2
    assert last(l2=20)["distance_to_base"] < last(l2=1e-9)["distance_to_base"] / 2


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_that_goes_on_has_the_base_of_its_beginning(
    tiny_model: Path, data: list[DomainData], tmp_path: Path, lora: bool
) -> None:
    recipe = replace(RECIPE, kl=0.5, l2=0.5)
    whole, first = (trainer(tiny_model, data, recipe, lora) for _ in range(2))
    for _ in range(5):
        whole.step(SHARES)
    for _ in range(2):
        first.step(SHARES)
    Checkpoints(first).save(tmp_path).result()
    second = trainer(tiny_model, data, recipe, lora)
    Checkpoints(second).load(tmp_path)
    for _ in range(3):
        second.step(SHARES)
    assert second.last.terms == whole.last.terms
    for one, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_plan_counts_the_copies_of_the_base(tiny_model: Path) -> None:
    def memory(**training: Any) -> Any:
        settings = Training(micro_batch_tokens=256, workers=1, **training)
        model = load_model(str(tiny_model), empty=True)
        return estimate(with_frozen(model, settings, 0), settings, 1, "cpu")

    plain = memory()
    both, kl = memory(keep={"l2": 1, "kl": 1}), memory(keep={"kl": 1})
    assert both.weights == 3 * plain.weights and kl.weights == 2 * plain.weights
    assert kl.workspace - plain.workspace == 4 * 256 * 64
    lora = {"lora": {"rank": 2}}
    assert memory(**lora, keep={"l2": 1, "kl": 1}).weights == memory(**lora).weights


def test_a_domain_that_there_is_not_is_told() -> None:
    config = parse({"training": {"keep": {"kl": 1, "kl_domain": "latin"}}})
    with pytest.raises(UserError, match=r"training.keep.kl_domain: 'latin'; valid: law"):
        semantics.check(config, semantics.domain_names(config))


def test_replay_is_a_part_of_a_domains_samples_whatever_its_share() -> None:
    from versatune_ray.pipeline.written import with_written
    from versatune_ray.settings import Domain, Source

    sources = [Source(path="a.jsonl", weight=3), "b.jsonl"]
    domains = {"law": Domain(train="law.jsonl"), "general": Domain(train=sources)}
    found = with_written(domains, {"general": 0.2}, {"general": Path("w.parquet")})
    assert found["law"] is domains["law"]
    assert found["general"].specs("train") == ["a.jsonl", "b.jsonl", "w.parquet"]
    assert found["general"].weights == pytest.approx([0.6, 0.2, 0.2])
    assert found["general"].held_out == [True, True, False]  # and never measures


def test_what_the_base_wrote_trains_without_what_failed_or_goes_round(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from versatune_ray.detection.generate import GENERATED, text_row
    from versatune_ray.pipeline.written import written_texts

    rows = [text_row(0, "good", 3, False), text_row(1, "a a a", 3, True), text_row(2, "", 0, False)]
    rows += [text_row(3, "beyond", 3, False)]
    store = tmp_path / "store"
    store.mkdir()
    table = pa.Table.from_pylist(rows, pa.schema(list(GENERATED.items())))
    parquet.write_table(table, store / "one.parquet")
    file = written_texts(store, 3, tmp_path / "cache")
    assert parquet.read_table(file).to_pylist() == [{"text": "good"}]
    # as a record of a domain that takes a part of its files alone
    from versatune_ray.domains.records import Rules, to_example
    from versatune_ray.settings import Domain

    domain = Domain(train="a.jsonl", where={"split": ["train", "more"], "easy": True})
    marked = written_texts(store, 3, tmp_path / "cache", domain.allowed)
    (row,) = parquet.read_table(marked).to_pylist()
    assert to_example(row, Rules(where=domain.allowed)).text == "good"


def test_a_soup_is_the_weighted_mean_of_its_models(tiny_model: Path, tmp_path: Path) -> None:
    from tiny import random_llama

    from versatune_ray.training.soup import soup

    shape = {"hidden_size": 32, "max_position_embeddings": 64, "tie_word_embeddings": True}
    other = Path(random_llama(tmp_path / "other", 5, **shape))
    soup([tiny_model, other], [3, 1], tmp_path / "soup")
    models = [AutoModelForCausalLM.from_pretrained(one) for one in (tiny_model, other)]
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    trio = zip(made.parameters(), *(model.parameters() for model in models), strict=True)
    for found, one, two in trio:
        torch.testing.assert_close(found, 0.75 * one + 0.25 * two)
    assert (tmp_path / "soup" / "tokenizer.json").is_file()
    for models_, weights, said in (
        ([tiny_model, other], [1], "--weights: one for each of 2"),
        ([tiny_model, tmp_path], [1, 1], "no model folder"),
        ([tiny_model, Path(random_llama(tmp_path / "wide"))], [1, 1], "other weights|and .* in"),
    ):
        with pytest.raises(UserError, match=said):
            soup(models_, weights, tmp_path / "again")


def test_a_soup_of_models_that_do_not_belong_together_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Same shapes, and other heads, positions, words, numbers: a mean of these is no model."""
    from versatune_ray.training.soup import soup

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_model, tmp_path / name))

    def edit(file: Path, change: Any) -> None:
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    heads, words, other = copy("heads"), copy("words"), copy("other")
    edit(heads / "config.json", lambda content: content.update(num_attention_heads=1))
    edit(words / "tokenizer.json", lambda content: content["model"]["vocab"].popitem())
    edit(other / "config.json", lambda content: content.update(transformers_version="0", x=1))
    for model, said in ((heads, "num_attention_heads is 1, and"), (words, "other words than")):
        with pytest.raises(UserError, match=said):
            soup([tiny_model, model], [1, 1], tmp_path / "soup")
    # the precision, like all that is beside the weights, is that of the first
    (weights,) = other.glob("*.safetensors")
    stored = load_file(weights)
    save_file({name: one.bfloat16() for name, one in stored.items()}, weights, {"format": "pt"})
    (other / "pytorch_model.bin").touch()
    for number, models in enumerate(([other, tiny_model], [tiny_model, other])):
        folder = tmp_path / f"soup-{number}"
        soup(models, [1, 1], folder)
        kinds = {one.dtype for one in load_file(folder / weights.name).values()}
        assert kinds == {torch.bfloat16 if number == 0 else torch.float32}
        assert not (folder / "pytorch_model.bin").exists()


def test_a_soup_takes_the_tuned_model_of_a_run_behind_a_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from versatune_ray.commands.runs import tuned_of
    from versatune_ray.runs.storage import push
    from versatune_ray.settings.location import root

    monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / "here"))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "jobs"))
    storage = f"file://{tmp_path / 'there'}"
    (tmp_path / "there").mkdir()
    run = root(storage) / "mine"
    (run / "finetune" / "model").mkdir(parents=True)
    (run / "finetune" / "model" / "config.json").write_text("{}")
    push(run / "finetune" / "model")
    (run / "config.yaml").write_text("model: {path: some/base}\n")
    push(run / "config.yaml")
    shutil.rmtree(run)  # another machine
    from soup import model_of

    assert (model_of(f"{storage}/mine") / "config.json").is_file()
    shutil.rmtree(run)
    assert tuned_of(f"{storage}/mine").base == "some/base"
