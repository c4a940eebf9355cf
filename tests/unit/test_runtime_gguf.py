"""Models in llama.cpp's format become ordinary folders."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from versatune_ray import cli
from versatune_ray.errors import UserError
from versatune_ray.runtime.gguf import as_folder, gguf_file, with_folders
from versatune_ray.settings.loading import parse

HIDDEN, HEADS, INNER, LAYERS = 32, 4, 64, 2
TOKENS = ["<unk>", "<s>", "</s>", *(chr(97 + place) for place in range(26)), "Ġ", "ab"]


def write(file: Path) -> dict[str, np.ndarray]:
    """A random Llama as llama.cpp has it; its tensors by the format's names."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *([1] * (len(TOKENS) - 3))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        shapes |= {f"{name}.attn_{part}.weight": (HIDDEN, HIDDEN) for part in ("q", "k", "v")}
        shapes |= {
            f"{name}.attn_output.weight": (HIDDEN, HIDDEN),
            f"{name}.ffn_gate.weight": (INNER, HIDDEN),
            f"{name}.ffn_up.weight": (INNER, HIDDEN),
            f"{name}.ffn_down.weight": (HIDDEN, INNER),
            f"{name}.attn_norm.weight": (HIDDEN,),
            f"{name}.ffn_norm.weight": (HIDDEN,),
        }
    tensors = {
        name: rng.normal(size=shape, scale=0.05).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_file_becomes_a_folder_of_the_same_weights_once(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    tensors = write(tmp_path / "models" / "small.Q4.gguf")
    folder = as_folder(tmp_path / "models" / "small.Q4.gguf", tmp_path / "cache")
    assert folder.name == "small.Q4"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and not hasattr(model.config, "quantization_config")
    expected = torch.from_numpy(tensors["blk.1.ffn_down.weight"]).to(torch.bfloat16)
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, expected)
    assert AutoTokenizer.from_pretrained(folder)("ab").input_ids
    before = (folder / "model.safetensors").stat().st_mtime_ns
    # by the folder that holds it alone, for every model of a configuration
    config = parse(
        {
            "storage": str(tmp_path / "runs"),
            "model": {"path": str(tmp_path / "models")},
            "domains": dict.fromkeys(("law", "code"), "x.jsonl"),
            "evaluation": {"models": {"whole": str(folder)}},
        }
    )
    first, again = (with_folders(config).model.path for _ in range(2))
    assert first == again and first is not None
    assert first.endswith("/small.Q4") and (Path(first) / "config.json").is_file()
    assert with_folders(config).evaluation.models == {"whole": str(folder)}
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    grouped = parse({"storage": str(tmp_path / "runs"), "group": {"model": config.model.path}})
    assert with_folders(grouped).group.model == first


def test_a_preview_reads_by_the_tokenizer_of_such_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "small.gguf")
    for name in ("law", "code"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "ab c", "completion": "b a"}\n' * 3)
    keys = [f"domains.{name}.train={tmp_path}/{name}.jsonl" for name in ("law", "code")]
    given = [f"model.path={tmp_path}/small.gguf", f"storage={tmp_path}/runs", *keys]
    config = tmp_path / "empty.yaml"
    config.write_text("run: preview\n")
    monkeypatch.setattr("sys.argv", ["preview", "--config", str(config), *given])
    with pytest.raises(SystemExit) as ended:
        cli.preview("")
    assert ended.value.code == 0, capsys.readouterr().err
    assert "code" in capsys.readouterr().out


def test_what_is_no_such_model_is_left_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gguf_file("owner/name") is None and gguf_file(str(tmp_path)) is None
    # repositories of such files often have a configuration beside them, and no other weights
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(str(tmp_path)) is None
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert gguf_file(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert gguf_file(str(tmp_path)) is None
    (tmp_path / "model.safetensors").unlink()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"2 \.gguf files in this folder; name one of them"):
        gguf_file(str(tmp_path))
    with pytest.raises(UserError, match=r"none\.gguf: no such file"):
        gguf_file(str(tmp_path / "none.gguf"))
    with pytest.raises(UserError, match=r"demo:llama: no such demo; there is demo:smollm2"):
        gguf_file("demo:llama")
    with pytest.raises(UserError, match=r"a\.gguf: "):
        as_folder(tmp_path / "a.gguf", tmp_path / "cache")
    monkeypatch.setattr("versatune_ray.runtime.gguf.DEMOS", {"demo:x": ("no_such_module_x", "x")})
    with pytest.raises(
        UserError, match=r"demo:x: not installed; pip install 'versatune-ray\[demo\]'"
    ):
        gguf_file("demo:x")
