"""What losses are measured in, with Ray and without."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_families import tokenizer_of

from versatune_ray.errors import UserError
from versatune_ray.settings.loading import load
from versatune_ray.training.given_losses import given_losses
from versatune_ray.training.inputs import loss_unit


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Three folders with tokenizers alone: two of one family, one of another."""
    for name, family in (("base", "Qwen2.5"), ("larger", "Qwen2.5"), ("other", "Phi-4")):
        tokenizer_of(family).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "unit"),
    [
        (None, "nats/token"),
        ("base", "nats/token"),
        ("larger", "nats/token"),
        ("other", "nats/byte"),
    ],
)
def test_losses_are_per_byte_where_the_reference_reads_other_tokens(
    models: Path, reference: str | None, unit: str
) -> None:
    base = str(models / "base")
    given = [f"reference.model={models / reference}"] if reference else []
    assert loss_unit(load([], [f"model.path={base}", *given]), base) == unit


def test_given_losses_say_what_they_are_measured_in(models: Path) -> None:
    base, file = str(models / "base"), models / "losses.json"
    domains = {"law": {"loss": 0.5}, "code": {"loss": 0.25}}
    given = [f"model.path={base}", "domains.law=a", "domains.code=b", f"reference.losses={file}"]
    file.write_text(json.dumps({"unit": "nats/byte", "domains": domains}))
    assert loss_unit(load([], given), base) == "nats/byte"
    file.write_text(json.dumps({"unit": "nats/token", "tokenizer": "?", "domains": domains}))
    with pytest.raises(UserError, match="another tokenizer"):
        loss_unit(load([], given), base)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"unit": "banana", "domains": %s}', "unit: 'banana'; valid: nats/token, nats/byte"),
        ('{"unit": "nats/byte", "domains": {"law": {"loss": "1"}, "code": {"loss": 1}}}', "law"),
        ('{"unit": "nats/byte", "domains": {"law": {"loss": 1}, "code": {"loss": true}}}', "code"),
        ('{"unit": "nats/byte", "domains": {"law": {"loss": 1}, "code": {"loss": -1}}}', "no loss"),
        ('{"unit": "nats/byte", "domains": {"law": {"loss": NaN}, "code": {"loss": 1}}}', "nan is"),
        ('{"unit": "nats/byte", "domains": {"law": 3, "code": {"loss": 1}}}', "no losses.json"),
        ('{"domains": %s}', "no 'unit' in it"),
        ("null", "no losses.json"),
        ("[]", "no losses.json"),
    ],
)
def test_what_are_no_losses_is_told_before_anything_starts(
    tmp_path: Path, content: str, told: str
) -> None:
    file = tmp_path / "losses.json"
    file.write_text(content.replace("%s", '{"law": {"loss": 1}, "code": {"loss": 2}}'))
    with pytest.raises(UserError, match=re.escape(told)):
        given_losses(str(file), ["law", "code"])
