"""What ``jobs/preview.py`` shows is what would train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from versatune_ray import cli
from versatune_ray.domains.preview import preview, screen
from versatune_ray.errors import UserError
from versatune_ray.settings import Config
from versatune_ray.settings.loading import load


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Config:
    law = [
        {"question": "w3 w4", "answer": "w5 w6", "source": "web"},
        {"question": "w3 w4", "answer": "w5 w6", "source": "book"},
        {"question": "w7", "answer": ""},
        {"messages": [{"role": "user", "content": "w8"}, {"role": "assistant", "content": "w9"}]},
    ]
    lines = [json.dumps(record) for record in law]
    (tmp_path / "law.jsonl").write_text("\n".join([*lines, '{"torn']) + "\n")
    code = {"prompt": "w3 " * 30, "completion": "w4 \x1b[31m"}
    (tmp_path / "code.jsonl").write_text(json.dumps(code) + "\n")
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}{{ 'w10 ' if m.role == 'user' else 'w11 ' }}{{ m.content }}"
        "{{ ' </s> ' if m.role == 'assistant' else ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'w11 ' }}{% endif %}"
    )
    given = [f"domains.{name}={tmp_path / name}.jsonl" for name in ("law", "code")]
    template = f"data.chat_template={tmp_path / 'chat.jinja'}"
    return load([], [f"model.path={tiny_model}", "data.max_length=35", template, *given])


def test_what_stops_a_job_is_told_with_a_way_out_only_where_there_is_one(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "law.jsonl").write_text('{"body": "x"}\n{"torn')
    (tmp_path / "code.jsonl").write_text("")
    law, code = preview(config, 1)[1]
    assert "domains.law: 2 of 2 records are bad" in law and "none is left to use" in law
    assert "max_bad_fraction" not in law
    assert "no record in" in code and code.endswith("a job stops at that")
    data = config.data.model_copy(update={"max_length": 65})  # the model takes 64
    long = preview(config.model_copy(update={"data": data}), 1)[1][0]
    assert long.startswith("data.max_length: this makes 65 tokens, more than the 64 that ")
    assert long.endswith("; a job stops at that")


def test_counts_examples_and_warnings_are_those_of_the_files(config: Config) -> None:
    found, warnings = preview(config, 9)
    law, code = found["law"].as_json(), found["code"].as_json()
    assert (law["read"], law["whole"], law["bad_count"], law["duplicates"]) == (5, True, 2, 1)
    assert list(law["shapes"].values()) == [2, 1] and law["unused_fields"] == {"source": 2}
    assert [bad["location"].rpartition(":")[2] for bad in law["bad"]] == ["3", "5"]
    first = law["samples"][0]
    # <s> w10 w3 w4 w11 w5 w6 </s>, of which the last three carry loss
    assert (first["tokens"], first["trained_tokens"]) == (8, 3)
    assert first["trained"] == ["w5 w6 </s>"] and first["location"].endswith("law.jsonl:1")
    assert first["turns"] == [
        {"role": "user", "content": "w3 w4"},
        {"role": "assistant", "content": "w5 w6"},
    ]
    # <s> w10, thirty words, w11, w4 and an unknown word, </s>
    assert (code["cut"], code["tokens"]["most"]) == (1, 36)
    text = "\n".join(warnings)
    assert "2 of 5 records are bad" in text and "'source' of 2 records is not read" in text
    # 2 / 5, as the job itself would say
    assert "a job stops at that: mend them, or set data.max_bad_fraction=0.4" in text
    assert "domains.code: 1 records are cut" in text and "data.chat_template" not in text
    endless = Path(str(config.data.chat_template))
    endless.write_text(endless.read_text().replace(" </s> ", " "))
    _, warnings = preview(config, 0)
    assert warnings[0].startswith("data.chat_template: no assistant turn ends in a token that")


def test_a_look_reads_the_beginning_of_a_file_and_says_so(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("versatune_ray.domains.preview._LOOK", 2)
    found, warnings = preview(config, 1)
    assert (found["law"].read, found["law"].whole, len(found["law"].samples)) == (2, False, 1)
    assert "--all reads them" in screen(found, warnings, colour=False)
    assert preview(config, 1, everything=True)[0]["law"].read == 5


def test_the_screen_marks_what_trains_and_lets_no_control_character_through(
    config: Config,
) -> None:
    found, warnings = preview(config, 9)
    text = screen(found, warnings, colour=False)
    assert "⟦w5 w6 </s>⟧" in text and "\x1b" not in text
    assert "\x1b[32mw5 w6 </s>\x1b[0m" in screen(found, warnings, colour=True)


def test_the_job_writes_the_account_and_ends_with_its_status(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "load", lambda *_: config)
    for arguments, status in ((["--json", f"{tmp_path}/x.json"], 0), (["--records", "-1"], 2)):
        monkeypatch.setattr("sys.argv", ["preview.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.preview("")
        assert ended.value.code == status
    assert "--records: -1 is below 0" in capsys.readouterr().err
    written = json.loads((tmp_path / "x.json").read_text())
    assert set(written) == {"domains", "warnings"} and list(written["domains"]) == ["law", "code"]


def test_without_domains_or_a_model_there_is_nothing_to_see(config: Config) -> None:
    with pytest.raises(UserError, match=r"^domains: none given"):
        preview(config.model_copy(update={"domains": {}}))
    bare = config.model_copy(update={"model": config.model.model_copy(update={"path": None})})
    with pytest.raises(UserError, match=r"^model\.path: none given"):
        preview(bare)
