"""Samples per second of a whole detection, generation and judging, over the flow of the paper's
release.

usage: python tests/bench/detection_release_flow.py [--quick]

Theirs: one Hugging Face ``generate`` per sample (prompt = EOS, T = 1, top_p = 1, repetition penalty
1.1, the token budget), then one judge request at a time that samples up to 512 tokens until EOS,
and a hard label read from the text. Ours: ``generate`` and ``judge`` of the product with what its
settings allow on a CPU (``OURS``), every sequence and answer written to parts, answers as
probabilities. Both start from EOS and have the same budget, 256 tokens. Start-up is excluded on
both: theirs is timed per call after one untimed sample; ours from the first request in an engine to
the last part on disk, for each stage.

Models are random ones of the tiny base's shape (detection.tiny_models): speed does not depend on
what they say. The judge is random too but answers with a letter and EOS, so theirs pays two tokens,
not 512. ``long`` sequences fill the budget, as a real base model's do (the release allows 15,999
tokens): the headline. ``short`` ones end after 29 tokens on average, as the microworld's do: in the
detail. Hugging Face gets the number of threads at which it is faster, measured on both at every
start (``threads``).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import detection

GOAL = 10.0
ROUNDS = 3
TOKENS = 256
SIZES = {"long": (512, 12), "short": (1024, 60)}  # sequences of ours and of theirs
QUICK = {"long": (64, 2)}
SAMPLING = {"max_tokens": TOKENS, "start": "eos", "repetition_penalty": 1.0}
# One engine and a fresh store, so one seed for the engine does: half of vLLM's time on a CPU goes
# into a generator per request.
OURS: dict[str, Any] = {"seeded": False, "engine": {"max_num_seqs": 256}}


def ours(given: dict[str, Any]) -> Any:
    from versatune_ray.detection import generate as writing
    from versatune_ray.detection import judge as judging
    from versatune_ray.detection import judge_vllm
    from versatune_ray.detection.texts import Texts

    found: dict[str, Any] = {}
    plain = writing.vllm_stage
    engine = {"options": given["settings"]["engine"]}
    with common.ray_session():
        for case, (count, _) in given["sizes"].items():
            folder = Path(tempfile.mkdtemp())
            writing.vllm_stage = judge_vllm.vllm_stage = plain
            detection.note_arrivals(writing, folder / "written")
            detection.note_arrivals(judge_vllm, folder / "asked")
            generation = (
                SAMPLING
                | given["settings"].get("generation", {})
                | {"seeded": given["settings"]["seeded"]}
            )
            source = detection.generation_source(
                given["models"][case], folder / "parts", generation, engine
            )
            spec = detection.judge_source(given["models"]["judge"], engine)
            writing.generate(source, count, gpu=False)
            (answered,) = judging.judge(spec, [Texts(folder / "parts", count, folder / "judged")])
            # an empty sequence, of which short ones are 3 %, is not judged
            assert answered >= 0.9 * count, answered
            begin, end = detection.window(folder / "written", folder / "parts")
            first, last = detection.window(folder / "asked", folder / "judged")
            found[case] = {
                "count": count,
                "tokens": detection.tokens_in(folder / "parts")[1],
                "generation": end - begin,
                "judging": last - first,
            }
    return found


def release(given: dict[str, Any]) -> Any:
    """The flow of the release, on Hugging Face alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from versatune_ray.detection.labels import parse_label
    from versatune_ray.detection.prompt import TINY_JUDGE_PROMPT
    from versatune_ray.settings import MICROWORLD as DOMAINS

    torch.manual_seed(given["round"])
    judge = AutoModelForCausalLM.from_pretrained(given["models"]["judge"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(given["models"]["judge"])
    padding = tokenizer.pad_token_id
    letters = "ABCDEF"[: len(DOMAINS)]

    def write(model: Any, longest: int = TOKENS) -> list[int]:
        start = torch.tensor([[tokenizer.eos_token_id]])
        sampling = {
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.1,
        }
        made = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_length=longest + 1,
            pad_token_id=padding,
            **sampling,
        )
        return made[0, 1:].tolist()

    def label(text: str) -> int | None:
        shown = tokenizer.decode(
            tokenizer.encode(text, add_special_tokens=False)[: detection.TEXT_TOKENS]
        )
        asked = tokenizer(TINY_JUDGE_PROMPT.replace("{text}", shown), return_tensors="pt")
        made = judge.generate(
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
            max_new_tokens=min(512, detection.CONTEXT - asked["input_ids"].shape[1]),
            do_sample=True,
            top_k=0,
            pad_token_id=padding,
        )
        return parse_label(
            tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True),
            letters,
        )[0]

    models = {
        case: AutoModelForCausalLM.from_pretrained(given["models"][case]).eval()
        for case in given["sizes"]
    }
    rates = {}
    for threads in given["threads"]:
        torch.set_num_threads(threads)
        write(models["long"], 16)
        begin = time.perf_counter()
        write(models["long"], 64)
        rates[threads] = 64 / (time.perf_counter() - begin)
    threads = max(rates, key=lambda one: rates[one])
    torch.set_num_threads(threads)

    found: dict[str, Any] = {}
    for case, (_, count) in given["sizes"].items():
        begin = time.perf_counter()
        written = [write(models[case]) for _ in range(count)]
        middle = time.perf_counter()
        labels = [label(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in written]
        end = time.perf_counter()
        found[case] = {
            "count": count,
            "tokens": sum(map(len, written)),
            "generation": middle - begin,
            "judging": end - middle,
            "labelled": sum(one is not None for one in labels),
        }
    return found | {"threads": threads, "tokens_per_s_by_threads": rates}


def parent(quick: bool) -> None:
    sizes, rounds = (QUICK, 1) if quick else (SIZES, ROUNDS)
    found: dict[str, list[Any]] = {"ours": [], "release": []}
    variants: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vtb") as folder:
        given: dict[str, Any] = {
            "models": detection.tiny_models(Path(folder)),
            "sizes": sizes,
            "settings": OURS,
            "threads": [1] if quick else [1, 2],
        }
        for number in range(rounds):
            for who in ("ours", "release") if number % 2 == 0 else ("release", "ours"):
                answer, _ = common.side(__file__, who, given | {"round": number}, timeout=900)
                found[who].append(answer)
                rates = ", ".join(f"{case} {_rate(answer[case]):.1f} samples/s" for case in sizes)
                common.note(f"round {number + 1} {who}: {rates}; load {os.getloadavg()[0]:.1f}")
        if not quick:
            others = {
                "default settings (seeded, 128 sequences at once)": {"seeded": True, "engine": {}},
                "with repetition penalty 1.1": OURS | {"generation": {"repetition_penalty": 1.1}},
            }
            for name, settings in others.items():
                answer, _ = common.side(
                    __file__,
                    "ours",
                    given | {"settings": settings, "sizes": {"long": SIZES["long"]}},
                    timeout=900,
                )
                variants[name] = round(_rate(answer["long"]), 2)

    def ratios(case: str, what: str) -> list[float]:
        pairs = zip(found["ours"], found["release"], strict=True)
        return [_rate(mine[case], what) / _rate(theirs[case], what) for mine, theirs in pairs]

    detail: dict[str, Any] = {
        "unit": "samples/s",
        "token_budget": TOKENS,
        "rounds": rounds,
        "settings_of_ours": OURS | {"batch_size": 128},
    }
    for case in sizes:
        mine, theirs = ([answer[case] for answer in found[who]] for who in ("ours", "release"))
        whole = ratios(case, "whole")
        detail[case] = {
            "ratio": round(statistics.median(whole), 2),
            "spread": [round(min(whole), 2), round(max(whole), 2)],
            "ours": round(statistics.median(_rate(one) for one in mine), 2),
            "theirs": round(statistics.median(_rate(one) for one in theirs), 2),
            "ours_tokens_per_sample": round(
                statistics.mean(one["tokens"] / one["count"] for one in mine), 1
            ),
            "theirs_tokens_per_sample": round(
                statistics.mean(one["tokens"] / one["count"] for one in theirs), 1
            ),
            "generation_ratio": round(statistics.median(ratios(case, "generation")), 2),
            "judging_ratio": round(statistics.median(ratios(case, "judging")), 2),
            "judging_ours": round(statistics.median(_rate(one, "judging") for one in mine), 1),
            "judging_theirs": round(statistics.median(_rate(one, "judging") for one in theirs), 1),
            "share_of_judging_in_ours": round(
                statistics.median(
                    one["judging"] / (one["generation"] + one["judging"]) for one in mine
                ),
                2,
            ),
            "theirs_labelled": round(
                statistics.mean(one["labelled"] / one["count"] for one in theirs), 2
            ),
        }
    detail["threads_of_theirs"] = [answer["threads"] for answer in found["release"]]
    detail["theirs_tokens_per_s_by_threads"] = [
        {threads: round(rate) for threads, rate in answer["tokens_per_s_by_threads"].items()}
        for answer in found["release"]
    ]
    detail["ours_with_other_settings"] = variants
    common.report(
        "detection_release_flow", ratios("long", "whole"), GOAL, detail | common.machine()
    )


def _rate(one: dict[str, Any], what: str = "whole") -> float:
    """Samples per second of one case of one side."""
    seconds = one["generation"] + one["judging"] if what == "whole" else one[what]
    return float(one["count"] / seconds)


if __name__ == "__main__":
    common.run(__doc__, parent, {"ours": ours, "release": release})
