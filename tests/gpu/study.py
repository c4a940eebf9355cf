"""The study on a real language model, on this GPU and without Ray: SmolLM2-135M-Instruct, methods ×
three seeds at 144 steps of 64, held-out loss and multiple choice by likelihood.

usage: bash tests/gpu/run study [FOLDER [SEED …]]     FOLDER holds sft/, eval/ and, for the methods
that start there, distribution.json (none: shared/data)

The methods are those of ``study_smollm2.yaml`` and ``study_real.yaml``, all of them with one seed
before the next, for as long as nine minutes last. Tables and outcomes lie in ``$OUT``, or in
``runs/gpu-study``. Without a GPU two methods take two steps of four records, to see that the code
runs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import CARD, DEVICE, GPU, note, report

from versatune_ray.domains import load_domains
from versatune_ray.domains.choices import Choices, read_choices
from versatune_ray.domains.tokenizing import build_stores
from versatune_ray.evaluation.likely import likely_accuracy
from versatune_ray.runs.cache import write_json
from versatune_ray.runtime.gguf import as_folder
from versatune_ray.settings import Config
from versatune_ray.settings.loading import load, parse, with_keys
from versatune_ray.training.local import finetune_alone
from versatune_ray.training.reference_worker import tune_alone
from versatune_ray.tuning.study_tables import NOTE, absent, study_tables

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "jobs" / "configs"
SECONDS = 540
LIMIT = 400 if GPU else 4  # questions per set
# with a GPU and without
SIZES = {
    True: "data.max_length=512 data.too_long=cut data.max_bad_fraction=0.2 data.max_validation=100 "
    "reference.max_records=2000 reference.epochs=3 reference.batch_size=64 "
    "reference.learning_rate=1e-4 training.epochs=4 training.samples_per_epoch=2304 "
    "training.batch_size=64 training.learning_rate=1e-4 training.adjust_every=12 "
    "training.micro_batch_tokens=32768",
    False: "data.max_length=128 data.max_validation=2 reference.max_records=4 reference.epochs=1 "
    "reference.batch_size=4 training.epochs=1 training.samples_per_epoch=8 training.batch_size=4 "
    "training.adjust_every=1",
}
# in full, as in the paper; to compile takes longer than a run; a checkpoint is six times the model
COMMON = (
    "training.lora.rank=null training.trainable.layers=null training.compile=false "
    "training.metrics=[] training.checkpoint_every=1000000 training.keep_checkpoints=1"
)


def model(storage: Path) -> Path:
    """The folder of the model, whose file comes in two pieces."""
    file = storage / "SmolLM2-135M-Instruct.gguf"
    with file.open("wb") as whole:
        for part in sorted((ROOT / ".model").glob("part-*")):
            whole.write(part.read_bytes())
    return as_folder(file, storage / "cache")


def choices(config: Config) -> dict[str, list[list[Choices]]]:
    """As ``evaluation.choices`` does, which needs pyarrow; of each domain's first benchmark."""
    found: dict[str, list[list[Choices]]] = {}
    for domain, (benchmark, *_) in config.evaluation.benchmarks.items():
        lines = Path(benchmark.task).read_text(encoding="utf-8").splitlines()[:LIMIT]
        some = []
        for line in lines:
            record = json.loads(line)
            # the letter, for a number may also spell another choice
            question, texts, right = read_choices(record | {"answer": "ABCDEFGH"[record["answer"]]})
            by_character = benchmark.metric == "acc_norm"
            some.append(Choices(f"{question}\nAnswer:", tuple(texts), right, by_character))
        found[domain] = [some]
    return found


def references(config: Config, file: Path) -> None:
    """``losses.json`` of every domain, tuned alone."""
    assert config.model.path is not None
    paths = build_stores(
        config, config.domains, config.model.path, config.cache_folder, distributed=False
    )
    domains = {}
    for name, data in load_domains(paths, config.data).items():
        alone = tune_alone(
            config.model.path,
            data,
            config.reference,
            config,
            "nats/token",
            DEVICE,
            lambda *_: None,
        )
        domains[name] = alone
        note(f"reference {name}: {alone['loss']:.3f} nats per token")
    write_json(file, {"unit": "nats/token", "domains": domains})


def methods(distribution: Path, gpu: bool = GPU) -> dict[str, Mapping[str, Any]]:
    """Those of both studies, the first ones first, without what refers to another's run or, where
    there is no file of it, to a detection.
    """
    ours = load([CONFIGS / "smollm2.yaml", CONFIGS / "study_smollm2.yaml"]).study.methods
    listed = {**ours, **load([CONFIGS / "study_real.yaml"]).study.methods}
    return {
        name: changes
        for name, changes in listed.items()
        if "mixture.trajectory" not in changes
        and (distribution.is_file() or changes.get("mixture.start") != "detected")
        and (gpu or name in ("uniform", "balanced"))
    }


def one(config: Config, asked: Mapping[str, list[list[Choices]]]) -> dict[str, Any]:
    """What a run leaves, as an outcome of a study; its folder is removed."""
    tuned = finetune_alone(config)
    log = (tuned.parent / "adjustments.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in log]
    found = {
        "before": lines[0]["loss"],
        "after": lines[-1]["loss"],
        "share": lines[-1]["share"],
        "by_epoch": [],
        "choices": likely_accuracy(str(tuned), asked, gpu=GPU),
    }
    shutil.rmtree(config.run_folder)
    return found


def leave(
    out: Path,
    found: Mapping[str, Mapping[int, Any]],
    seeds: Sequence[int],
    names: Sequence[str],
    base: Mapping[str, float],
    chances: Mapping[str, float],
) -> str:
    """Outcomes and tables of what is done so far; returns the tables."""
    write_json(out / "outcomes.json", {"base": base, "chance": chances, "found": found})
    tables = study_tables(found, names, "nats/token", (), "uniform", {}, chances)
    text = "\n".join([NOTE, *absent(found, seeds, names, {})])
    text += "".join(f"\n\n**{one.title}**\n\n{one.markdown()}\n" for one in tables)
    (out / "tables.md").write_text(text, encoding="utf-8")
    return text


def main() -> int:
    began = time.monotonic()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "shared" / "data").absolute()
    seeds = [int(word) for word in sys.argv[2:]] or ([0, 1, 2] if GPU else [0])
    out = Path(os.environ.get("OUT") or ROOT / "runs" / "gpu-study").absolute()
    for needed in (ROOT / ".model", folder / "sft", folder / "eval"):
        if not needed.is_dir():
            note(f"no {needed}: the study is left out (see tests/gpu/README.md)")
            return 2 if GPU else 0
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    with tempfile.TemporaryDirectory(prefix="vtg") as work:
        files = [CONFIGS / "smollm2.yaml", CONFIGS / "study_smollm2.yaml"]
        path, losses = model(Path(work)), Path(work) / "losses.json"
        given = [f"model.path={path}", f"storage={work}", f"device={DEVICE.type}"]
        config = load(files, [*given, *SIZES[GPU].split(), *COMMON.split()])
        asked = choices(config)
        chances = {
            name: sum(1 / len(question.answers) for question in some) / len(some)
            for name, (some,) in asked.items()
        }
        before = likely_accuracy(str(path), asked, gpu=GPU)
        report("study: base", chance=chances, accuracy=before, questions=LIMIT, card=CARD)
        references(config, losses)
        tree = config.model_dump(mode="json", exclude={"study"})
        listed = methods(folder / "distribution.json")
        found: dict[str, dict[int, Any]] = {name: {} for name in listed}
        longest, names, text = 0.0, list(config.domains), ""
        for number, (seed, name) in enumerate((seed, name) for seed in seeds for name in listed):
            if time.monotonic() - began + longest > SECONDS and GPU:
                note("the time is over; the others are left out")
                break
            start = time.monotonic()
            changes = {**listed[name], "seed": seed, "run": f"run-{number}"}
            changes["reference.losses"] = str(losses)
            if (folder / "distribution.json").is_file():
                changes["detection.distribution"] = str(folder / "distribution.json")
            found[name][seed] = one(parse(with_keys(tree, changes)), asked)
            seconds = time.monotonic() - start
            longest = max(longest, seconds)
            report(f"study: {name}", seed=seed, seconds=seconds, detail=found[name][seed])
            text = leave(out, found, seeds, names, before, chances)  # one that fails takes no other
            if GPU:
                torch.cuda.empty_cache()
    print(text, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
