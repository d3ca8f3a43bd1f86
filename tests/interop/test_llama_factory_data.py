"""Entries of ``dataset_info.json``, and sources that name their own columns and tags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.cli.main import main
from plaudit.data.formats.readers import READERS
from plaudit.data.load import load_comparisons
from plaudit.data.sources.read import read_rows
from plaudit.errors import DataError
from plaudit.recipe.schema import Source
from plaudit.types import Comparison, Turns
from tests.conftest import write_jsonl

RUN = Path(__file__).parents[1] / "fixtures" / "llama_factory" / "run"

ALPACA = {
    "instruction": "Translate",
    "input": "gato",
    "chosen": "cat",
    "rejected": "dog",
    "system": "Be brief.",
    "history": [["Ready?", "Yes."]],
}


def info(folder: Path, rows: list[dict[str, Any]], **entry: Any) -> Source:
    """An entry of a description beside its file."""
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    described = {"pairs": {"file_name": "rows.json", "ranking": True, **entry}}
    (folder / "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")
    return Source(path=str(folder / "dataset_info.json"), subset="pairs")


def said(turns: Turns) -> list[Any]:
    return [turns] if isinstance(turns, str) else [(turn.role, turn.content) for turn in turns]


def first(source: Source) -> Comparison:
    return load_comparisons((source,), seed=1).comparisons[0]


def complaint(source: Source) -> str:
    with pytest.raises(DataError) as raised:
        load_comparisons((source,), seed=1)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_the_rows_of_a_real_run() -> None:
    source = Source(path=str(RUN / "dataset_info.json"), subset="dpo_en_demo")
    loaded = load_comparisons((source,), seed=1)
    assert (loaded.tally.rows, loaded.tally.used) == (90, 90)
    (facts,) = loaded.sources
    assert (facts.name, facts.format) == ("dpo_en_demo", "sharegpt")
    given = json.loads((RUN / "dpo_en_demo_90.json").read_text("utf-8"))
    assert said(loaded.comparisons[7].responses[1]) == [
        ("assistant", given[7]["rejected"]["value"])
    ]


def test_names_that_columns_does_not_list_are_not_read(tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "query": "input"}
    columns |= {"chosen": "chosen", "rejected": "rejected"}
    one = first(info(tmp_path, [ALPACA], columns=columns))
    assert said(one.prompt) == [("user", "Translate\ngato")]
    whole = first(info(tmp_path, [ALPACA]))
    assert [role for role, _ in said(whole.prompt)] == ["system", "user", "assistant", "user"]


def test_columns_and_tags_of_other_names(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    row = {
        "talk": turns,
        "good": {"role": "assistant", "content": "4"},
        "bad": {"role": "assistant", "content": "5"},
        "conversations": "something else",
    }
    source = info(
        tmp_path,
        [row],
        formatting="sharegpt",
        columns={"messages": "talk", "chosen": "good", "rejected": "bad"},
        tags={
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    )
    one = first(source)
    assert said(one.prompt) == [("system", "Be brief."), ("user", "2+2?")]
    assert [said(response) for response in one.responses] == [
        [("assistant", "4")],
        [("assistant", "5")],
    ]


def test_roles_that_tags_do_not_list_break_a_row(tmp_path: Path) -> None:
    """``human`` means nothing where the tags call the user something else."""
    turn = {"from": "human", "value": "Hi"}
    good = {"from": "bot", "value": "Hello"}
    answers = {"chosen": good, "rejected": good | {"value": "?"}}
    rows = [{"conversations": [one], **answers} for one in (turn, turn | {"from": "me"})]
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "me", "assistant_tag": "bot"}
    source = info(tmp_path, rows, formatting="sharegpt", columns=columns, tags=tags)
    loaded = load_comparisons((source,), seed=1)
    assert loaded.tally.dropped == {"broken_turns": 1}
    assert said(loaded.comparisons[0].prompt) == [("user", "Hi")]


def test_the_old_output_of_two(tmp_path: Path) -> None:
    row = {"instruction": "Translate", "input": "gato", "output": ["cat", "dog"]}
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    for entry in ({}, {"columns": columns}):
        one = first(info(tmp_path, [row], **entry))
        assert [said(r) for r in one.responses] == [[("assistant", "cat")], [("assistant", "dog")]]


def test_num_samples_is_a_number_of_rows(tmp_path: Path) -> None:
    rows = [ALPACA | {"input": str(number)} for number in range(10)]
    loaded = load_comparisons((info(tmp_path, rows, num_samples=4),), seed=1)
    assert len(loaded.comparisons) == 4
    assert loaded.tally.dropped == {"not_sampled": 6}
    assert len(load_comparisons((info(tmp_path, rows, num_samples=25),), seed=1).comparisons) == 25


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"ranking": False}, "is not a ranking"),
        ({"columns": {"images": "images"}}, "has images, but plaudit reads only text"),
        ({"columns": ["chosen"]}, "columns is not an object"),
        ({"num_samples": "many"}, "num_samples is 'many'"),
        ({"formatting": "chatml"}, "formatting is 'chatml'"),
        ({"file_name": None}, "neither file_name nor hf_hub_url"),
        ({"file_name": None, "ms_hub_url": "a/b"}, "is on ModelScope; download it"),
        ({"file_name": "gone.json"}, "gone.json does not exist"),
        (
            {"columns": {"prompt": "instruction", "chosen": "better", "rejected": "rejected"}},
            "the column chosen is missing",
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": {"user_tag": "me"}},
            "role_tag is null",
        ),
    ],
)
def test_entries_that_cannot_be_used_say_why(
    tmp_path: Path, entry: dict[str, Any], expected: str
) -> None:
    assert expected in complaint(info(tmp_path, [ALPACA], **entry))


KTO_TURNS = [{"role": "me", "text": "2+2?"}, {"role": "bot", "text": "4"}]


@pytest.mark.parametrize(
    ("rows", "entry"),
    [
        (
            [
                {"ask": "2+2?", "reply": "4", "good": True},
                {"ask": "2+2?", "reply": "5", "good": False},
            ],
            {"columns": {"prompt": "ask", "response": "reply", "kto_tag": "good"}},
        ),
        (
            [
                {"talk": KTO_TURNS, "good": True},
                {"talk": [KTO_TURNS[0], {"role": "bot", "text": "5"}], "good": False},
            ],
            {
                "formatting": "sharegpt",
                "columns": {"messages": "talk", "kto_tag": "good"},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "text",
                    "user_tag": "me",
                    "assistant_tag": "bot",
                },
            },
        ),
    ],
    ids=["alpaca", "sharegpt"],
)
def test_kto_rows_are_rated(
    tmp_path: Path, rows: list[dict[str, Any]], entry: dict[str, Any]
) -> None:
    """No `ranking` is needed, and each row has one response that is good (1) or bad (0)."""
    source = info(tmp_path, rows, ranking=False, **entry)
    loaded = load_comparisons((source,), seed=1, learns_from="ratings")
    read = [
        ([said(c.prompt), *map(said, c.responses)], c.grades, c.rated) for c in loaded.comparisons
    ]
    ask = [("user", "2+2?")]
    assert read == [
        ([ask, [("assistant", "4")]], (1.0,), True),
        ([ask, [("assistant", "5")]], (0.0,), True),
    ]
    assert "2 of them have a rating" in complaint(source)


def test_a_kto_conversation_must_end_with_an_answer(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "Hi"}], "kto_tag": True},
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
            ],
            "kto_tag": False,
        },
    ]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    loaded = load_comparisons((Source(path=path),), seed=1, learns_from="ratings")
    assert (loaded.tally.used, loaded.tally.dropped) == (1, {"broken_turns": 1})


def test_a_missing_entry_names_the_nearest(tmp_path: Path) -> None:
    path = info(tmp_path, [ALPACA]).path
    assert "did you mean pairs?" in complaint(Source(path=path, subset="pair"))
    assert "describes pairs; choose an entry with `subset`" in complaint(Source(path=path))
    Path(path).write_text("[1]")
    assert "is not a JSON object" in complaint(Source(path=path, subset="pairs"))
    Path(path).write_text("{")
    assert "invalid JSON" in complaint(Source(path=path, subset="pairs"))


def pairs_csv(folder: Path) -> Path:
    path = folder / "pairs.csv"
    chat = '"[{""role"": ""user"", ""content"": ""2+2?""}]"'
    path.write_text(f"ask,good,bad,prompt,gap\n{chat},4,5,not this,2\n", encoding="utf-8")
    return path


def test_a_source_says_where_its_columns_are(tmp_path: Path) -> None:
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad", "margin": "gap"}
    source = Source(path=str(pairs_csv(tmp_path)), columns=columns)
    one = first(source)
    assert said(one.prompt) == [("user", "2+2?")]
    assert one.margin == 2.0
    assert one.metadata == {}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"promt": "ask"}, "promt is not a column of any format; did you mean prompt?"),
        (
            {"prompt": "ask", "chosen": "good", "rejected": "bad", "margin": "gep"},
            "names gep, which no row has (columns of the first row: ask, good, bad",
        ),
        ({"chosen": "good"}, "no format has the columns"),
    ],
)
def test_wrong_names_of_columns_are_said(
    tmp_path: Path, columns: dict[str, str | None], expected: str
) -> None:
    assert expected in complaint(Source(path=str(pairs_csv(tmp_path)), columns=columns))


def test_wrong_names_are_those_of_the_format_given(tmp_path: Path) -> None:
    source = Source(path=str(pairs_csv(tmp_path)), format="unpaired", columns={"chosen": "good"})
    assert "chosen is not a column of the format unpaired" in complaint(source)
    assert "chosen" not in READERS["unpaired"].columns


def test_a_preference_strength_needs_a_measure(tmp_path: Path) -> None:
    path = pairs_csv(tmp_path)
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    source = Source(path=str(path), columns=columns, preference_strength="margin")
    assert "a row of the format explicit_conversational does not" in complaint(source)
    path.write_text(
        "prompt,chosen,rejected,score_chosen,score_rejected\na,b,c,9,2\nd,e,f,,\n", encoding="utf-8"
    )
    loaded = load_comparisons((Source(path=str(path), preference_strength="margin"),), seed=1)
    assert [one.margin for one in loaded.comparisons] == [7.0, None]


def test_a_soft_label_needs_annotators(tmp_path: Path) -> None:
    path = pairs_csv(tmp_path)
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    source = Source(path=str(path), columns=columns, preference_strength="soft_label")
    assert "needs the preferences of several annotators" in complaint(source)
    path.write_text("prompt,chosen,rejected,agree\na,b,c,0.75\nd,e,f,\n", encoding="utf-8")
    source = Source(path=str(path), columns={"soft_label": "agree"})
    loaded = load_comparisons((source,), seed=1)
    assert [one.soft_label for one in loaded.comparisons] == [0.75, None]


def test_pairs_of_equal_scores_are_ties_where_weights_are_graded(tmp_path: Path) -> None:
    """A weight of 0 is none, and a weight of 1 would count them more than clear ones."""
    scores = [(8.0, 7.5), (8.0, 8.0), (3.0, 8.0)]
    rows = [
        {"prompt": f"{n}?", "chosen": "a", "rejected": "b", "score_chosen": c, "score_rejected": r}
        for n, (c, r) in enumerate(scores)
    ]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    loaded = load_comparisons((Source(path=path, preference_strength="weight"),), seed=1)
    assert [comparison.weight for comparison in loaded.comparisons] == [0.5]
    assert loaded.tally.dropped == {"tie": 2}
    assert load_comparisons((Source(path=path),), seed=1).tally.used == 3
    margins = load_comparisons(
        (Source(path=path, preference_strength="margin"),), seed=1
    ).comparisons
    assert [comparison.margin for comparison in margins] == [0.5, 0.0, 0.0]


def test_a_later_row_of_another_format_is_an_error(tmp_path: Path) -> None:
    """Its prompt would become metadata, and its answers be read without it."""
    rows = [{"chosen": "One? Yes", "rejected": "One? No"}]
    rows += [{"prompt": "Two?", "chosen": "Yes", "rejected": "No"}]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    said = complaint(Source(path=path))
    assert (
        "rows.jsonl:2: this row has the format explicit_text, but the first row has implicit_text"
        in said
    )
    assert "looks like a prompt, but the format does not read it" in complaint(
        Source(path=path, format="implicit_text")
    )
    alone = Source(path=path, format="implicit_text", columns={"prompt": None})
    assert load_comparisons((alone,), seed=1).tally.used == 2


def test_an_entry_on_the_command_line(tmp_path: Path) -> None:
    """``dataset_info.json:ENTRY`` is audited, mended, converted and split."""
    row = {"q": "2+2?", "good": "4<|im_end|>", "bad": "5", "instruction": "not this", "topic": "a"}
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    given = info(tmp_path, [row, row | {"q": "2+3?"}], columns=columns)
    path = f"{given.path}:{given.subset}"
    run = ["data", "audit", path, "--fix", str(tmp_path / "clean.jsonl")]
    assert main(run) == 0
    (_, mended), _ = read_rows(Source(path=str(tmp_path / "clean.jsonl")))
    assert mended == row | {"good": "4"}
    out = tmp_path / "out.jsonl"
    assert main(["data", "convert", path, "--to", "rewardbench", "--out", str(out)]) == 0
    (_, converted), _ = read_rows(Source(path=str(out)))
    assert (converted["prompt"], converted["chosen"]) == ("2+2?", "4<|im_end|>")
    assert converted["topic"] == "a"
    assert "q" not in converted
    parts = ["--out", str(tmp_path / "parts"), "--fractions", "a=0.5,b=0.5"]
    assert main(["data", "split", path, *parts]) == 0
