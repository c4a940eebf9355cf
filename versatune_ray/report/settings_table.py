"""The settings that the page shows: those that a reader of this kind of run asks for."""

from __future__ import annotations

from versatune_ray.report.data import RunData
from versatune_ray.report.writing import setting

_TRAINING_SETTINGS = {
    "mixture.policy": "policy",
    "mixture.start": "starting shares",
    "mixture.sigma": "σ",
    "mixture.delta": "δ",
    "mixture.epsilon": "ε",
    "mixture.targets": "targets",
    "mixture.feedback": "feedback",
    "training.epochs": "epochs",
    "training.batch_size": "batch size",
    "training.learning_rate": "peak learning rate",
    "training.adjust_every": "adjust every",
    "training.workers": "workers",
    "seed": "seed",
}
_EVALUATION_SETTINGS = {
    "model.path": "model",
    "evaluation.limit": "questions per benchmark",
    "evaluation.chat": "as a chat",
    "evaluation.run_code": "programs run",
    "seed": "seed",
}
_DETECTION_SETTINGS = {
    "detection.samples": "sequences per repeat",
    "detection.repeats": "repeats",
    "detection.tolerance": "tolerance",
    "detection.estimate": "estimate",
    "detection.generation.temperature": "temperature",
    "detection.generation.top_p": "top-p",
    "detection.generation.max_tokens": "tokens per sequence",
    "detection.judge.path": "judge",
    "seed": "seed",
}


def _varied(run: RunData) -> set[str]:
    """Keys that a sweep or a study gives each of its runs another value of."""
    methods = run.setting("study.methods") if run.study and run.compares else None
    changed = (
        {key for changes in methods.values() if isinstance(changes, dict) for key in changes}
        if isinstance(methods, dict)
        else set()
    )
    return changed | set(run.sweep.keys if run.sweep and run.compares else ())


def settings_table(run: RunData) -> list[tuple[str, str]]:
    shown = (
        _DETECTION_SETTINGS
        if run.detects_only
        else _EVALUATION_SETTINGS
        if run.measures_only
        else _TRAINING_SETTINGS
    )
    found = [(name, run.setting(key)) for key, name in shown.items() if key not in _varied(run)]
    if shown is _TRAINING_SETTINGS and isinstance(stages := run.setting("stages"), list):
        found += [
            (
                f"stage {one['name']}",
                {key: value for key, value in one.items() if key != "name" and value},
            )
            for one in stages
        ]
    versions = run.setting("versions")
    found += list(versions.items()) if isinstance(versions, dict) else []
    return [(str(name), setting(value)) for name, value in found if value not in (None, [], {})]
