"""Operations of a training step, counted by hand, and the peaks of GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from versatune_ray.settings.loading import parse
from versatune_ray.training.metrics import Work, peak_flops
from versatune_ray.training.model import load_model, with_frozen


def test_the_work_of_a_step_by_hand(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    # Two layers of four 32 × 32 matrices, three 32 × 64 ones and two norms, and a norm at the end;
    # an output embedding of 64 × 32.
    weights, head, width = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32, 64 * 32, 2 * 2 * 16
    lengths, responses = np.array([3, 5]), np.array([1, 2])
    work = Work.of(model)
    assert work.flops(lengths, responses) == 6 * weights * 8 + 6 * width * (9 + 25) + 6 * head * 3
    settings_ = parse({"training": {"lora": {"rank": 4, "targets": ["q_proj"]}}}).training
    model = with_frozen(load_model(str(tiny_model)), settings_, 0)
    lora = 2 * (4 * 32 + 32 * 4)
    assert Work.of(model).flops(lengths, responses) == (
        (4 * (weights + lora) + 2 * lora) * 8 + 6 * width * (9 + 25) + 4 * head * 3
    )
    model = with_frozen(
        load_model(str(tiny_model)),
        parse({"training": {"trainable": {"layers": 1, "modules": "up_proj"}}}).training,
        0,
    )
    layer, trained = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32, 32 * 64
    # Nothing goes back through the first layer: half of the attention's backward pass is left, and
    # 2 of 4 operations per weight there.
    assert Work.of(model).flops(lengths, responses) == (
        (4 * weights - 2 * layer + 2 * trained) * 8 + 4 * width * (9 + 25) + 4 * head * 3
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
