# SPDX-License-Identifier: Apache-2.0
"""`oumi data` shows rows of every kind as they will be trained, whoever trains them, on any terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from oumi.cli.drawing import shortened, sparkline
from oumi.cli.main import run
from oumi.core.data.checks.statistics import Bin
from tests.tiny import save_tiny_model

CHAT = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yo."}]}
LONG_CHAT = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "word " * 300}]}
PAIR = {"prompt": "Hi?", "chosen": "Yo.", "rejected": "Go away."}
JUDGED = {"prompt": "Hi?", "completion": "Yo.", "label": True}
PROMPT = {"prompt": "What is 1 + 1?", "answer": 2}
TEXT = {"text": "First line.\nSecond line with a tab\t."}


class CommandRun(NamedTuple):
    code: int
    out: str
    err: str


Oumi = Callable[..., CommandRun]


@pytest.fixture
def oumi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Oumi:
    """Runs the command line where a tiny model is, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    save_tiny_model(tmp_path / "model")
    capsys.readouterr()

    def call(*arguments: str) -> CommandRun:
        monkeypatch.setattr(sys, "argv", ["oumi", *arguments])
        try:
            run()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return CommandRun(code, *capsys.readouterr())

    return call


def write(folder: Path, name: str, *rows: Any) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return name


def config(folder: Path, trainer: str, *paths: str, validation: str | None = None, **split: Any) -> str:
    """Writes a config of a few lines and returns its name."""
    content = {
        "model": {"model_name": "model"},
        "data": {"train": {"datasets": [{"dataset_name": "set", "dataset_path": path} for path in paths], **split}},
        "training": {"trainer_type": trainer, "output_dir": "out"},
    }
    if validation is not None:
        content["data"]["validation"] = {"datasets": [{"dataset_name": "held", "dataset_path": validation}]}
    (folder / "c.yaml").write_text(json.dumps(content))
    return "c.yaml"


def lines_of(run: CommandRun) -> list[str]:
    assert run.code == 0, run.err
    assert "\x1b" not in run.out
    return run.out.splitlines()


def test_a_chat_is_drawn_turn_by_turn(oumi: Oumi, tmp_path: Path) -> None:
    run = oumi("data", "preview", "-c", config(tmp_path, "OUMI", write(tmp_path, "a.jsonl", CHAT)))
    assert lines_of(run) == [
        "⟦trained⟧  not trained   ▸ start of a turn   ↵ new line",
        "── row 1: a.jsonl:1, 27 tokens, 4 trained ──────────────────────────────────────",
        "▸ <|im_start|>user↵",
        "  Hi?<|im_end|>↵",
        "▸ <|im_start|>assistant↵",
        "  ⟦Yo.<|im_end|>⟧↵",
    ]


def test_a_preference_is_drawn_as_two_documents(oumi: Oumi, tmp_path: Path) -> None:
    run = oumi("data", "preview", "-c", config(tmp_path, "TRL_DPO", write(tmp_path, "a.jsonl", PAIR)))
    lines = lines_of(run)
    assert lines[1].startswith("── row 1: 2 documents, 59 tokens ─")
    assert lines[2].startswith("── chosen: a.jsonl:1, 27 tokens, 4 trained ─")
    assert lines[6] == "  ⟦Yo.<|im_end|>⟧↵"
    assert lines[7].startswith("── rejected: a.jsonl:1, 32 tokens, 9 trained ─")
    assert lines[11] == "  ⟦Go away.<|im_end|>⟧↵"


def test_a_judged_completion_is_drawn(oumi: Oumi, tmp_path: Path) -> None:
    run = oumi("data", "preview", "-c", config(tmp_path, "TRL_KTO", write(tmp_path, "a.jsonl", JUDGED)))
    assert lines_of(run)[2] == "Hi?⟦Yo.<|im_end|>⟧"


def test_a_prompt_is_drawn_as_the_model_is_prompted_and_nothing_is_trained(oumi: Oumi, tmp_path: Path) -> None:
    run = oumi("data", "preview", "-c", config(tmp_path, "TRL_GRPO", write(tmp_path, "a.jsonl", PROMPT)))
    lines = lines_of(run)
    assert ", 0 trained ─" in lines[1]
    assert lines[2:] == ["▸ <|im_start|>user↵", "  What is 1 + 1?<|im_end|>↵", "▸ <|im_start|>assistant↵"]


def test_a_text_is_drawn_with_its_control_characters(oumi: Oumi, tmp_path: Path) -> None:
    run = oumi("data", "preview", "-c", config(tmp_path, "OUMI", write(tmp_path, "a.jsonl", TEXT)))
    assert lines_of(run)[2:] == ["⟦First line.↵", "Second line with a tab\\t.<|im_end|>⟧"]


def test_documents_of_a_packed_row_are_drawn_apart(oumi: Oumi, tmp_path: Path) -> None:
    run = oumi("data", "preview", "-c", config(tmp_path, "OUMI", write(tmp_path, "a.jsonl", *[CHAT] * 3), pack=True))
    heads = [line.rstrip("─ ") for line in lines_of(run) if line.startswith("──")]
    assert heads[0] == "── row 1: 3 documents, 81 tokens"
    assert [head.partition(":")[0] for head in heads[1:]] == ["── document 1", "── document 2", "── document 3"]


def test_a_long_row_is_drawn_in_part_and_reported_as_truncated(oumi: Oumi, tmp_path: Path) -> None:
    name = config(tmp_path, "OUMI", write(tmp_path, "a.jsonl", LONG_CHAT))
    short = lines_of(oumi("data", "preview", "-c", name))
    assert "  … 256 tokens omitted, 256 of them trained: see --full …" in short
    assert short[-1] == "✂ truncated: 1,012 tokens of this row cut off"
    full = lines_of(oumi("data", "preview", "-c", name, "--full"))
    assert not any("left out" in line for line in full)
    text = "".join(full)
    assert text.count("word") > "".join(short).count("word") > 20


def json_of(run: CommandRun) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the documents and the ledgers of `oumi data preview --json`."""
    assert run.code == 0, run.err
    *documents, last = map(json.loads, run.out.splitlines())
    return documents, last["ledgers"]


def test_documents_are_printed_as_json_as_they_stand_in_batches(oumi: Oumi, tmp_path: Path) -> None:
    name = config(
        tmp_path, "OUMI", write(tmp_path, "chats.jsonl", *[CHAT] * 5, '{"messages": []}'), validation="v.jsonl"
    )
    write(tmp_path, "v.jsonl", CHAT, LONG_CHAT)
    documents, ledgers = json_of(oumi("data", "preview", "-c", name, "--json"))
    assert sorted(document["source"] for document in documents) == [f"chats.jsonl:{line}" for line in range(1, 6)]
    assert [document["row"] for document in documents] == list(range(5))
    for document in documents:
        labels = document["labels"]
        assert len(labels) == len(document["ids"])
        trained = [i for i, label in enumerate(labels) if label != -100]
        assert trained == list(range(trained[0], trained[-1] + 1))  # one answer
        assert [labels[i] for i in trained] == [document["ids"][i] for i in trained]
    assert ledgers["train"][0]["rows"] == {"read": 6, "trained": 5, "truncated": 0, "rejected": 1, "split": 0}
    measured, _ = json_of(oumi("data", "preview", "-c", name, "--json", "--split", "validation", "--rows", "1"))
    assert [document["source"] for document in measured] == ["v.jsonl:1"]


def test_the_rows_of_a_stream_are_printed_once(oumi: Oumi, tmp_path: Path) -> None:
    name = config(tmp_path, "OUMI", write(tmp_path, "chats.jsonl", *[CHAT] * 5), stream=True)
    documents, _ = json_of(oumi("data", "preview", "-c", name, "--json", "--training.max_steps", "2"))
    assert len(documents) == 5


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("command", ["preview", "stats", "validate"])
def test_no_line_is_wider_than_the_terminal(
    oumi: Oumi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    folder = tmp_path / "a directory with quite a long name" / "and another one within it"
    folder.mkdir(parents=True)
    first = str(folder / write(folder, "chats.jsonl", CHAT, LONG_CHAT, CHAT))
    other = write(tmp_path, "b.jsonl", CHAT, *[{**CHAT, "messages": [*CHAT["messages"], *CHAT["messages"]]}] * 3)
    name = config(tmp_path, "OUMI", first, other, validation=other)
    lines = lines_of(oumi("data", command, "-c", name))
    assert max(map(len, lines)) <= width
    assert len(lines) > 3


def test_statistics_tell_lengths_shares_losses_and_repeats(oumi: Oumi, tmp_path: Path) -> None:
    first = write(tmp_path, "a.jsonl", CHAT, LONG_CHAT, CHAT, "{nope")
    other = write(tmp_path, "b.jsonl", {"messages": CHAT["messages"] * 2})
    lines = lines_of(oumi("data", "stats", "-c", config(tmp_path, "OUMI", first, other, validation=other)))
    assert lines[:8] == [
        "── train ───────────────────────────────────────────────────────────────────────",
        "  data set  read  = trained  + truncated  + rejected",
        "  a.jsonl      4          2            1           1",
        "  b.jsonl      1          1            0           0",
        "  in an epoch  rows  of all  tokens  of all  trained",
        "  a.jsonl         3   75.0%     566   91.3%    88.0%",
        "  b.jsonl         1   25.0%      54    8.7%    14.8%",
        "  tokens a row  min  p50  p90  p99  max",
    ]
    text = "\n".join(lines)
    assert "✂ a.jsonl: 1,012 tokens cut off (64.1%), 1,011 of them targets (67.0% of all\n  targets)" in text
    assert "✗ a.jsonl: 1 x not valid JSON" in text
    assert "! rows that repeat another, token by token: 1\n    a.jsonl:3 repeats a.jsonl:1" in text
    assert "! rows that are in the training set, too: 1\n    b.jsonl:1 is also b.jsonl:1" in text
    assert "tokens a row: min 27  p50 " in text


def test_statistics_of_a_mixture_have_its_real_shares(oumi: Oumi, tmp_path: Path) -> None:
    first = write(tmp_path, "a.jsonl", *[{**CHAT, "id": i} for i in range(100)])
    other = write(tmp_path, "b.jsonl", *[CHAT] * 100)
    name = config(tmp_path, "OUMI", first, other, pack=True)
    loaded = json.loads((tmp_path / name).read_text())
    for params, share in zip(loaded["data"]["train"]["datasets"], (0.75, 0.25), strict=True):
        params["mixture_proportion"] = share
    (tmp_path / name).write_text(json.dumps(loaded))
    run = oumi("data", "stats", "-c", name, "--json")
    statistics = json.loads(run.out)["train"]
    assert statistics["rows"] == 133
    assert [params["epoch"]["rows"] for params in statistics["datasets"]] == [100, 33]
    rows = statistics["packed"]["rows"]
    assert statistics["packed"]["empty_share"] == pytest.approx(1 - 133 * 27 / (512 * rows))
    assert "75.2%" in oumi("data", "stats", "-c", name).out
    assert f"packed: {rows} rows of 512 tokens, " in oumi("data", "stats", "-c", name).out


def test_every_problem_of_every_data_set_is_reported(oumi: Oumi, tmp_path: Path) -> None:
    bad = write(tmp_path, "a.jsonl", CHAT, *["{nope"] * 30)
    (tmp_path / "empty.jsonl").write_text("")
    validation = write(tmp_path, "h.jsonl", CHAT, {"messages": []})
    name = config(tmp_path, "OUMI", bad, "empty.jsonl", write(tmp_path, "b.jsonl", PAIR), validation=validation)
    run = oumi("data", "validate", "-c", name)
    assert run.code == 65
    for i in range(2, 32):
        assert f"✗ a.jsonl:{i}: not valid JSON" in run.out
    assert "h.jsonl:2: the conversation is empty" in run.out
    assert run.err.startswith("Error: 4 problems of the rows\n")
    assert "a.jsonl: 30 of 31 rows cannot be used" in run.err
    assert "empty.jsonl: empty" in run.err
    assert "b.jsonl: expected chats or texts for method next_token, got preferences" in run.err
    assert "h.jsonl: 1 of 2 rows cannot be used" in run.err
    assert "data.validation.max_rejected_rows: 1" in run.err


@pytest.mark.parametrize(
    ("trainer", "row"),
    [("OUMI", CHAT), ("OUMI", TEXT), ("TRL_SFT", CHAT), ("TRL_DPO", PAIR), ("TRL_KTO", JUDGED), ("TRL_GRPO", PROMPT),
     ("TRL_GKD", CHAT)],
)  # fmt: skip
def test_sound_rows_of_any_method_pass(oumi: Oumi, tmp_path: Path, trainer: str, row: Any) -> None:
    name = config(tmp_path, trainer, write(tmp_path, "a.jsonl", row))
    assert lines_of(oumi("data", "validate", "-c", name))[-1] == "no problem"
    assert lines_of(oumi("data", "stats", "-c", name))[-1] == "  no duplicates"


@pytest.mark.parametrize(
    ("trainer", "row", "message"),
    [
        ("TRL_DPO", CHAT, "a.jsonl: expected preferences for method dpo, got chats"),
        (
            "TRL_KTO",
            CHAT,
            "a.jsonl: expected preferences or completions judged by a column 'label' of true or false for method kto, "
            "got chats",
        ),
        ("OUMI", PROMPT, "a.jsonl: expected chats or texts for method next_token, got prompts"),
    ],
)
def test_rows_of_another_method_do_not_pass(oumi: Oumi, tmp_path: Path, trainer: str, row: Any, message: str) -> None:
    run = oumi("data", "validate", "-c", config(tmp_path, trainer, write(tmp_path, "a.jsonl", row)))
    assert run.code == 65
    assert message in run.err


def test_all_else_of_a_config_is_checked_though_its_trainer_is_not_built(oumi: Oumi, tmp_path: Path) -> None:
    name = config(tmp_path, "TRL_DPO", write(tmp_path, "a.jsonl", PAIR), truncation="SPLIT")
    run = oumi("data", "preview", "-c", name)
    assert run.code == 2
    assert "data.train.truncation: SPLIT would separate the parts of a row that method dpo compares" in run.err
    assert "not supported" not in run.err
    assert oumi("data", "preview", "-c", name, "--training.sede", "1").code == 2


def test_names_and_spreads_are_shortened() -> None:
    assert shortened("short", 9) == "short"
    assert shortened("/a/long/path/to/file.jsonl", 16) == "…/to/file.jsonl"
    assert shortened("/a/averyveryverylongname.jsonl", 12) == "…gname.jsonl"
    assert sparkline([Bin(0, 1, 0), Bin(2, 3, 1), Bin(4, None, 8)]) == " ▁█"


def test_documents_that_are_joined_are_counted_and_drawn_with_their_own_lines(oumi: Oumi, tmp_path: Path) -> None:
    rows = [{"text": f"Text {i}. " * 3} for i in range(12)]
    path = tmp_path / config(tmp_path, "OUMI", write(tmp_path, "a.jsonl", *rows))
    content = json.loads(path.read_text())
    content["data"]["train"]["datasets"][0] |= {"dataset_name": "text", "dataset_kwargs": {"seq_length": 40}}
    path.write_text(json.dumps(content))
    assert any("7 rows, 280 tokens" in line for line in lines_of(oumi("data", "stats", "-c", str(path))))
    drawn = lines_of(oumi("data", "preview", "-c", str(path), "--rows", "1"))
    places = [line.partition(".jsonl:")[2].partition(",")[0] for line in drawn if ".jsonl:" in line]
    assert len(places) == len(set(places)) >= 2
