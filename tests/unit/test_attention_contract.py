"""What flash attention is handed on a GPU, for every family: a stub in its place computes the same
on a CPU, and notes its arguments.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import short_recipe
import torch
from torch.nn import functional
from torch.nn.attention import varlen
from transformers import AutoConfig, AutoModelForCausalLM

from versatune_ray.domains import DomainData
from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Training
from versatune_ray.settings.recipe import Execution
from versatune_ray.training import attention
from versatune_ray.training.batches import Samples
from versatune_ray.training.families import FAMILIES
from versatune_ray.training.model import begin_adapters, fill, load_model, with_frozen
from versatune_ray.training.trainer import Trainer

CPU, SHARES = torch.device("cpu"), np.array([0.5, 0.5])
RECIPE = replace(short_recipe.RECIPE, batch_size=8)
WINDOW, HEADS, GROUPS, SIZE = 6, 4, 2, 8
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "head_dim": SIZE,
    "num_key_value_heads": GROUPS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "qwen2": WINDOWED | {"use_sliding_window": True},
    "qwen3": WINDOWED | {"use_sliding_window": True},
    "mistral": {"sliding_window": WINDOW},
    "smollm3": WINDOWED | {"use_sliding_window": True, "no_rope_layers": [1, 0]},
    "olmo3": WINDOWED,
    "phi3": {"sliding_window": WINDOW},
    "gemma3_text": WINDOWED | {"query_pre_attn_scalar": 16},
}


class Calls(list[dict[str, Any]]):
    """Arguments of the stub, as a GPU's kernel would see them."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, no_group_is_left: None) -> Calls:
    """In the place of torch's varlen attention: the formula itself, sample by sample, in
    float32.
    """
    calls = Calls()

    real = inspect.signature(varlen.varlen_attn)

    def varlen_attn(
        q: Any,
        k: Any,
        v: Any,
        starts: Any,
        starts_k: Any,
        longest: int,
        longest_k: int,
        **options: Any,
    ) -> torch.Tensor:
        real.bind(q, k, v, starts, starts_k, longest, longest_k, **options)  # as this torch has it
        calls.append(
            {
                "q": q,
                "k": k,
                "v": v,
                "starts": starts,
                "starts_k": starts_k,
                "longest": (longest, longest_k),
            }
            | options
        )
        out = []
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            queries, keys, values = (
                states[begin:end].float().transpose(0, 1) for states in (q, k, v)
            )
            keys, values = (
                states.repeat_interleave(q.shape[1] // k.shape[1], 0) for states in (keys, values)
            )
            place = torch.arange(end - begin)
            behind = place[:, None] - place
            left = options["window_size"][0]
            seen = (behind >= 0) & ((behind <= left) if left >= 0 else True)
            scores = (queries @ keys.transpose(1, 2) * options["scale"]).masked_fill(
                ~seen, -torch.inf
            )
            out.append((scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype))
        return torch.cat(out)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    return calls


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of each family, with windows shorter than the samples where the family has
    windows.
    """
    folder = tmp_path_factory.mktemp("models") / request.param
    config = AutoConfig.for_model(request.param, **(SHAPE | OF_FAMILY.get(request.param, {})))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def trainer(
    model: str,
    data: list[DomainData],
    kind: attention.Kind,
    training: Training | None = None,
    **execution: Any,
) -> Trainer:
    """As on a GPU, but for the device."""
    empty = execution.setdefault("parallel", "fsdp") == "fsdp"
    loaded = with_frozen(load_model(model, attention=kind, empty=empty), training or Training(), 0)
    one = Trainer(loaded, data, RECIPE, CPU, execution=Execution(**execution))
    if empty:
        fill(loaded, model)
        begin_adapters(loaded, 0)
    return one


def windows(model: str) -> list[tuple[int, int]]:
    """What each layer has to see behind a position, by the configuration alone; a window counts the
    position itself.
    """
    config = AutoConfig.from_pretrained(model)
    kinds = (
        getattr(config, "layer_types", None)
        or ["sliding_attention" if config.model_type in ("mistral", "phi3") else "full_attention"]
        * 2
    )
    return [(WINDOW - 1 if kind == "sliding_attention" else -1, 0) for kind in kinds]


@pytest.mark.parametrize("how", ["plain", "lora", "recomputed", "autocast"])
def test_the_kernel_is_handed_one_precision_whole_rows_and_the_samples_boundaries(
    model: str, how: str, data: list[DomainData], kernel: Calls
) -> None:
    training = Training(lora=Lora(rank=2)) if how == "lora" else None
    execution = (
        {"activation_checkpointing": "full"}
        if how == "recomputed"
        else {"parallel": "ddp"}
        if how == "autocast"
        else {}
    )
    one = trainer(model, data, "varlen", training, precision="bf16", **execution)
    one.step(SHARES)
    assert one.attention == "varlen" and kernel
    lengths = sorted(one.last.lengths.tolist())  # type: ignore[union-attr]
    seen: list[int] = []
    for number, call in enumerate(kernel):
        rows = call["q"].shape[0]
        assert rows % 128 == 0
        assert [call[name].dtype for name in "qkv"] == [torch.bfloat16] * 3
        assert [tuple(call[name].shape) for name in "qkv"] == [
            (rows, HEADS, SIZE),
            (rows, GROUPS, SIZE),
            (rows, GROUPS, SIZE),
        ]
        assert all(call[name].stride(-1) == 1 for name in "qkv")
        assert call["starts"] is call["starts_k"] and call["starts"].dtype == torch.int32
        between = call["starts"].diff().tolist()
        assert (
            call["starts"][0] == 0
            and call["starts"][-1] == rows
            and call["longest"] == (max(between),) * 2
        )
        assert call["enable_gqa"] is True and call["scale"] == pytest.approx(
            16**-0.5 if "gemma3" in model else SIZE**-0.5
        )
        if how != "recomputed":
            assert call["window_size"] == windows(model)[number % 2]
        if number % 2 == 0:
            seen += between[:-1] if rows > sum(between[:-1]) else between
    times = 2 if how == "recomputed" else 1
    assert sorted(seen) == sorted(lengths * times)


def test_every_kind_of_attention_gives_the_loss_and_gradient_of_each_sample_by_itself(
    model: str, data: list[DomainData], kernel: Calls
) -> None:
    """Transformers' eager attention, one sample at a time, is what the others are held against."""
    plain = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    drawn = trainer(model, data, "padded").sampler.next_batch(SHARES)
    total, count = torch.zeros(()), 0
    for domain, index in zip(*drawn, strict=True):
        tokens, mask = data[domain].train[int(index)]
        ids, kept = torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(mask[1:].copy())
        nats = functional.cross_entropy(
            plain(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none"
        )[kept]
        total, count = total + nats.sum(), count + len(nats)
    (total / count).backward()
    wanted = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for kind in ("padded", "sdpa", "varlen"):
        one = trainer(model, data, kind)  # type: ignore[arg-type]
        one.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign, assignment]
        assert one.step(SHARES) == pytest.approx(float(total / count), rel=1e-5), kind
        for name, parameter in one.model.named_parameters():
            torch.testing.assert_close(
                parameter.grad.full_tensor(),
                wanted[name],
                atol=2e-6,
                rtol=1e-3,
                msg=f"{kind}: {name}",
            )


def test_packing_leaks_nothing(model: str, data: list[DomainData], kernel: Calls) -> None:
    """Another first sample of the same length in the row: the nats of the others are the same to
    the last bit.
    """
    length = data[0].train.lengths
    first = next(np.flatnonzero(length == n)[:2] for n in length if (length == n).sum() > 1)
    for kind in ("sdpa", "varlen"):
        one = trainer(model, data, kind)  # type: ignore[arg-type]
        found = []
        for index in first:
            samples = Samples(
                [domain.train for domain in data],
                np.array([0, 1, 1, 1]),
                np.array([index, 5, 6, 7]),
            )
            with torch.no_grad():
                nats = one.parallel.forward(one._layout.collate(samples, None).inputs, train=False)
            found.append(
                nats.split(
                    [
                        len(nats) - int(samples.response_tokens[1:].sum()),
                        int(samples.response_tokens[1:].sum()),
                    ]
                )
            )
        assert not torch.equal(found[0][0], found[1][0]), kind
        assert torch.equal(found[0][1], found[1][1]), kind


@pytest.mark.usefixtures("no_group_is_left")
@pytest.mark.compiler
def test_layers_with_the_kernel_are_compiled_once(
    backend: str, tmp_path: Path, data: list[DomainData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel as an operator of its own, as torch has it: rows, boundaries and longest samples
    change and nothing is compiled again.
    """

    @torch.library.custom_op("versatune_test::varlen", mutates_args=())
    def operator(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, longest: int
    ) -> torch.Tensor:
        return q.clone()

    operator.register_fake(lambda q, k, v, starts, longest: torch.empty_like(q))
    operator.register_autograd(lambda ctx, grad: (grad, None, None, None, None))
    stub = lambda q, k, v, starts, _, longest, *more, **options: operator(q, k, v, starts, longest)  # noqa: E731
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stub)
    # more than torch compiles anew before it gives up
    layers = 3 if backend == "eager" else 12
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **(SHAPE | {"num_hidden_layers": layers}))
    ).save_pretrained(tmp_path / "model")
    one = trainer(str(tmp_path / "model"), data, "varlen", compile=True)
    for _ in range(3):
        one.step(SHARES)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(6):
            one.step(SHARES)


def test_what_a_kernel_would_not_be_told_is_refused() -> None:
    q = torch.zeros(1, 2, 3, 4)
    for name, value in (
        ("s_aux", torch.zeros(2)),
        ("softcap", 30.0),
        ("position_bias", torch.zeros(1)),
        ("is_causal", False),
    ):
        for function in (attention._varlen, attention.AttentionInterface()["versatune_padded"]):
            with pytest.raises(
                UserError, match=f"passes {name} to its attention, which training would lose"
            ):
                function(torch.nn.Module(), q, q, q, None, **{name: value})
    with pytest.raises(UserError, match="passes attention_mask to its attention"):
        attention._varlen(torch.nn.Module(), q, q, q, torch.zeros(1))
