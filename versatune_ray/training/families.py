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
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, dict)}
    if "dynamic" in kinds:
        raise UserError(
            f"{path}: rope_type=dynamic in its config.json is not supported: each sample's "
            f"positions would depend on its batch"
        )
