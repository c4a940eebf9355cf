"""Detection of one base model: generate, judge, estimate; each stage kept, so that a second run repeats none of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset

from versatune_ray.cache import cached, write_json
from versatune_ray.detection.distribution import estimate, total_variation
from versatune_ray.detection.generate import generate, start_token
from versatune_ray.detection.judge import JudgeSpec, judge
from versatune_ray.errors import UserError
from versatune_ray.models import model_fingerprint
from versatune_ray.settings import Detection


def detect(
    model: str,
    judge_spec: JudgeSpec,
    domains: Sequence[str],
    descriptions: Mapping[str, str],
    settings: Detection,
    seed: int,
    cache: Path,
    *,
    gpu: bool,
    trust_remote_code: bool,
) -> tuple[Path, bool]:
    """Detect what ``model`` knows. Returns the folder with ``distribution.json`` and ``samples/``, and whether it came from the cache.

    Raises:
        UserError: a model cannot be found, or fewer than two sequences could be judged.
    """
    parts: dict[str, Any] = {
        "model": model_fingerprint(model),
        "judge": model_fingerprint(judge_spec.path),
        "prompt": [judge_spec.prompt, judge_spec.labels, judge_spec.max_text_tokens],
        "domains": {name: descriptions.get(name, "") for name in domains},
        "settings": settings.model_dump(include={"samples", "repeats", "generation"}),
        "options": [settings.engine.options, judge_spec.engine.options],
        "seed": seed,
    }

    def build(work: Path) -> None:
        start, how = start_token(model, trust_remote_code)
        generated, samples = work / "generated", work / "samples"
        generate(model, start, settings, seed, generated, gpu=gpu, trust_remote_code=trust_remote_code)
        judge(judge_spec, domains, descriptions, generated, samples)
        shown = {"start_token": how, "prompt": judge_spec.prompt} | parts["settings"] | {"seed": seed}
        write_json(work / "distribution.json", summarize(model, judge_spec.path, domains, samples, settings.repeats, shown))
        shutil.rmtree(generated)  # every row is in samples/ too

    return cached(cache, "detection", parts, build)


def summarize(
    model: str, judge_path: str, domains: Sequence[str], samples: Path, repeats: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the judged samples and state the distribution, its intervals, and everything that was left out of it."""
    table = pyarrow.dataset.dataset(str(samples), format="parquet").to_table(columns=["id", "repeat", "tokens", "discarded", *domains])
    reasons = [reason.split(":")[0] for reason in table["discarded"].to_pylist() if reason is not None]
    judged = np.array([reason is None for reason in table["discarded"].to_pylist()], dtype=bool)
    probabilities = np.stack([table[name].to_numpy().astype(np.float64) for name in domains], axis=1)[judged]
    if len(probabilities) < 2:
        raise UserError(
            f"detection of {model}: {len(probabilities)} of {table.num_rows} sequences could be judged ({dict(Counter(reasons))})"
        )
    order = np.argsort(table["id"].to_numpy()[judged])  # Ray Data writes in no fixed order; sums must not depend on it
    found = estimate(probabilities[order], table["repeat"].to_numpy()[judged][order], repeats)
    known = _known(model, domains)
    return {
        "model": model,
        "domains": list(domains),
        "share": found.share.tolist(),
        "ci95": found.ci95.tolist(),
        "repeats": found.repeats.tolist(),
        "samples": table.num_rows,
        "tokens": int(np.sum(table["tokens"].to_numpy())),
        "discarded": {"total": len(reasons), "reasons": dict(Counter(reasons))},
        "judge": judge_path,
        "settings": dict(settings),
        "known": None if known is None else known.tolist(),
        "total_variation": None if known is None else total_variation(found.share, known),
    }


def _known(model: str, domains: Sequence[str]) -> Any:
    """The pre-training mixture of a base model made here, in the order of ``domains``; None for any other."""
    path = Path(model) / "pretraining.json"
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    shares = dict(zip(facts["domains"], facts["mixture"], strict=True))
    return np.array([shares[name] for name in domains]) if set(shares) == set(domains) else None
