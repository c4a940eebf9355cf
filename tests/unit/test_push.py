"""``versatune push``: the folder, the card and what is sent. The hub is a stand-in that notes what
it is given; nothing leaves the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from versatune_ray.commands import push
from versatune_ray.errors import UserError


class FakeApi:
    """Stands in for ``huggingface_hub.HfApi``."""

    calls: list[tuple[str, Any]]

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        if repository.startswith("nobody/"):
            raise OSError("You are not\nallowed")
        self.calls.append((repository, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append((repo_id, sorted(file.name for file in folder_path.iterdir())))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run over a base that lies on this machine."""
    FakeApi.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    folder = tmp_path / "runs" / "mine"
    model = folder / "finetune" / "model"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer_config.json", "README.md"):
        (model / name).write_text("{}")
    base = tmp_path / "machines" / "my-base"
    base.mkdir(parents=True)
    config = {
        "run": "mine",
        "storage": str(tmp_path / "runs"),
        "model": {"path": str(base)},
        "domains": {"law": "law.jsonl", "co|de": "code.jsonl"},
        "mixture": {"preset": "balanced"},
        "versions": {"python": "3.11", "ray": "2.60.0"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    counts = {"law": {"train": 1200, "validation": 40}, "co|de": {"train": 7, "validation": 3}}
    (folder / "data.json").write_text(json.dumps({"domains": counts, "unit": "nats/token"}))
    lines = [
        {"step": 0, "loss": {"law": 4.0, "co|de": 2.0}, "share": {"law": 0.5, "co|de": 0.5}},
        {"step": 9, "loss": {"law": 3.0, "co|de": 1.5}, "share": {"law": 0.625, "co|de": 0.375}},
    ]
    log = folder / "finetune" / "adjustments.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_card_tells_domains_shares_policy_losses_counts_and_versions(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    push.command("", [str(run), "me/mine", "--dry-run"])
    said = capsys.readouterr().out
    assert "would send this to the private me/mine; nothing is sent" in said
    assert FakeApi.calls == []
    text = (run / "hub" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "transformers" and "base_model" not in head
    assert "| law | 1,200 | 40 | 50.0 % | 62.5 % | 4.000 | 3.000 |\n" in text
    assert "3.000 |\n| co\\|de | 7 | 3 | 50.0 % | 37.5 % | 2.000 | 1.500 |\n" in text
    assert "| mixture.policy | balanced |" in text and "mixture.sigma" not in text
    assert "(first to last adjustment) fell in every domain: co|de −25.0\u202f%" in text
    assert "Versions: python 3.11, ray 2.60.0." in text
    assert "my-base, fine-tuned on 2 domains" in text and str(tmp_path) not in text
    assert "\n\n\n" not in text


def test_a_table_with_right_answers_stays_a_table(run: Path) -> None:
    rows = [
        {
            "model": model,
            "domain": "law",
            "benchmark": "questions",
            "metric": "exact_match",
            "value": value,
            "standard_error": 0.01,
        }
        for model, value in (("base", 0.1), ("tuned", 0.9))
    ]
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps({"results": rows}))
    push.command("", [str(run), "me/mine", "--dry-run", "--base", "Qwen/Qwen2.5-7B"])
    text = (run / "hub" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "Qwen/Qwen2.5-7B"
    table = [line for line in text.splitlines() if line.startswith("|")][:4]
    cells = [line.replace("\\|", "").count("|") for line in table]
    assert cells == [10] * 4 and table[2].endswith("| 10.0 % | 90.0 % |")


def test_what_is_sent_is_the_model_and_its_card(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push.command("", [str(run), "me/mine", "--public"])
    sent = ["README.md", "config.json", "model.safetensors", "tokenizer_config.json"]
    assert FakeApi.calls == [("me/mine", False), ("me/mine", sent)]
    assert capsys.readouterr().out.endswith("https://huggingface.co/me/mine\n")
    with pytest.raises(UserError, match=r"^nobody/x: the hub did not take it: You are not allowed"):
        push.command("", [str(run), "nobody/x"])
    with pytest.raises(UserError, match=r"^mine: is no repository; write OWNER/NAME"):
        push.command("", [str(run), "mine"])


def test_an_adapter_names_a_base_that_others_have(run: Path, tmp_path: Path) -> None:
    model = run / "finetune" / "model"
    (model / "config.json").unlink()
    base = str(tmp_path / "machines" / "my-base")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(UserError, match=r"the adapter's base is a folder of this machine"):
        push.command("", [str(run), "me/mine", "--dry-run"])
    push.command("", [str(run), "me/mine", "--dry-run", "--base", "Qwen/Qwen2.5-7B"])
    found = json.loads((run / "hub" / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == "Qwen/Qwen2.5-7B"
    head = yaml.safe_load((run / "hub" / "README.md").read_text().split("---")[1])
    assert head["library_name"] == "peft" and head["base_model_relation"] == "adapter"


def test_a_gguf_is_made_by_the_converter_or_its_lack_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    push.command("", [str(run), "me/mine", "--dry-run", "--gguf"])
    assert "no GGUF: convert_hf_to_gguf.py is not found; name" in capsys.readouterr().out
    llama = tmp_path / "llama.cpp"
    llama.mkdir()
    script = llama / "convert_hf_to_gguf.py"
    script.write_text("import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'w').close()")
    given = [str(run), "me/mine", "--dry-run", "--gguf", "--llama-cpp", str(llama)]
    push.command("", given)
    assert (run / "hub" / "mine.gguf").is_file()
    script.write_text("raise SystemExit('unknown architecture')")
    with pytest.raises(UserError, match="failed: unknown architecture"):
        push.command("", given)
