"""Which architectures train here: those of which every part between tokens and loss is known to be
told to our attention and our loss.

Others often load and train as well, and quietly as another model: attention sinks, soft caps,
experts' balancing losses or recurrent states are lost where a kernel, a mask or the loss is not
told of them.
"""

from __future__ import annotations

from typing import Any

from versatune_ray.errors import UserError

FAMILIES = {
    "llama": "Llama",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "smollm3": "SmolLM3",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "phi3": "Phi-3, Phi-4",
    "gemma3_text": "Gemma 3 (text)",
}
# Settings that change scores, logits or positions in a way that is not computed here, with the
# values that mean nothing.
_UNKNOWN: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "use_bidirectional_attention": (None, False),
    "is_causal": (None, True),
}


def check_family(config: Any, path: str) -> None:
    """Whether a model of this ``config`` (transformers') can be trained here; of its weights
    nothing is read.

    Raises:
        UserError: it is of another family, or has a setting that would be lost.
    """
    if config.model_type not in FAMILIES:
        listed = ", ".join(FAMILIES.values())
        raise UserError(
            f"{path}: models of the type {config.model_type!r} cannot be fine-tuned here; those of "
            f"{listed} can"
        )
    for name, harmless in _UNKNOWN.items():
        value = getattr(config, name, None)
        if value not in harmless:
            raise UserError(
                f"{path}: {name}={value!r} in its config.json is not supported: it would be lost "
                f"in training"
            )
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        kind = dict(quantised).get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"{path}: is quantised ({kind or 'by its config.json'}); fine-tuning needs the "
            f"original weights"
        )
    if "dynamic" in _rope_types(config):
        raise UserError(
            f"{path}: rope_type=dynamic in its config.json is not supported: each sample's "
            f"positions would depend on its batch"
        )


def check_positions(config: Any, longest: int, path: str) -> None:
    """Whether a sample's positions depend on itself alone, with samples of up to ``longest``
    tokens.

    ``longrope`` (Phi-3, Phi-4) takes other frequencies for a whole batch once one sample in it is
    longer than the context that the model was first trained on.

    Raises:
        UserError: they would depend on the batch.
    """
    first = getattr(config, "original_max_position_embeddings", None) or next(
        (
            rope["original_max_position_embeddings"]
            for rope in _ropes(config)
            if rope.get("original_max_position_embeddings")
        ),
        None,
    )
    if "longrope" in _rope_types(config) and first is not None and longest > first:
        raise UserError(
            f"{path}: rope_type=longrope in its config.json gives a batch other positions once a "
            f"sample is longer than {first:,} tokens, and the longest here has {longest:,}; write "
            f"data.max_length={first} and data.too_long=cut"
        )


def check_own_code(model: Any, path: str) -> None:
    """Whether transformers' own class is what was loaded, which our attention and loss are told of.

    Raises:
        UserError: it is code that came with the model.
    """
    if not type(model).__module__.startswith("transformers."):
        raise UserError(
            f"{path}: this model brings code of its own ({type(model).__name__}), of which "
            f"training knows nothing; leave out model.trust_remote_code"
        )


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Rotary settings of the model, or of each kind of its layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [one for one in (rope, *rope.values()) if isinstance(one, dict)]


def _rope_types(config: Any) -> set[Any]:
    return {rope.get("rope_type") for rope in _ropes(config)}
