"""Law 6 over columns: a prompt that is not read is an error on every path, the rest is counted."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from plaudit.cli.main import main
from plaudit.cli.options import parse_columns
from plaudit.data.formats.readers import READERS, to_comparison
from plaudit.data.load import load_comparisons, open_source
from plaudit.data.unread import TrackedRow, UnreadColumns, UnreadCounter, kind_of_name
from plaudit.errors import DataError, RecipeError
from plaudit.recipe.schema import Source
from plaudit.serving.protocols.table import PROTOCOLS
from plaudit.types import Comparison, Message, TokenTree
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.data.test_readers import COLUMNS, EXAMPLES, JSON, assistant, damaged, user

TEXTS = {"chosen": "Blue, by day.", "rejected": "It is green."}
WHOLE = {
    "chosen": [user("Which colour?"), assistant("Blue.")],
    "rejected": [user("Which colour?"), assistant("Green.")],
}
TURNS = [user("Hi"), assistant("Hello"), user("Which colour has the sky?")]
SHAREGPT = [{"from": "human", "value": "Which colour has the sky?"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A row whose ``column`` would vanish, what it looks like, and the ``columns`` that read it."""

    row: Mapping[str, Any]
    column: str
    kind: str
    columns: Mapping[str, str] | None


LOST: Mapping[str, Lost] = {
    "messages beside texts": Lost(
        row={"messages": TURNS, **TEXTS},
        column="messages",
        kind="a conversation",
        columns={"prompt": "messages"},
    ),
    **{
        f"{name} beside texts": Lost(
            row={name: "Which colour has the sky?", **TEXTS},
            column=name,
            kind="a prompt",
            columns={"prompt": name},
        )
        for name in ("conversation", "user", "problem", "text", "context", "query", "UserInput")
    },
    **{
        f"a sentence called {name} beside texts": Lost(
            row={name: "Which colour has the sky?", "chosen": "The one", "rejected": "The other"},
            column=name,
            kind="a prompt",
            columns={"prompt": name},
        )
        for name in ("my_prompt", "q", "post", "问题")
    },
    "turns beside answers without a prompt": Lost(
        row={
            "dialog_hist": TURNS,
            "chosen": [{"role": "assistant", "content": "Blue."}],
            "rejected": [{"role": "assistant", "content": "Red."}],
        },
        column="dialog_hist",
        kind="a conversation",
        columns={"prompt": "dialog_hist"},
    ),
    "turns under a name of their own": Lost(
        row={"trajectory": SHAREGPT, **TEXTS},
        column="trajectory",
        kind="a conversation",
        columns=None,
    ),
    "system beside a text prompt": Lost(
        row={"system": "Be brief.", **EXAMPLES["explicit_text"]},
        column="system",
        kind="a system message",
        columns={"question": "prompt", "system": "system"},
    ),
    "system_prompt beside messages": Lost(
        row={"system_prompt": "Be brief.", **EXAMPLES["explicit_conversational"]},
        column="system_prompt",
        kind="a system message",
        columns={"system": "system_prompt"},
    ),
    "SystemMessage beside whole conversations": Lost(
        row={"SystemMessage": "Be brief.", **WHOLE},
        column="SystemMessage",
        kind="a system message",
        columns={"system": "SystemMessage"},
    ),
    "system beside a conversation that has one": Lost(
        row={
            **EXAMPLES["sharegpt"],
            "conversations": [{"from": "system", "value": "Rhyme."}, *SHAREGPT],
            "system": "Be brief.",
        },
        column="system",
        kind="a system message",
        columns=None,
    ),
    "context beside a prompt": Lost(
        row={"context": "It is night.", **EXAMPLES["explicit_text"]},
        column="context",
        kind="a prompt",
        columns=None,
    ),
    "query beside an instruction": Lost(
        row={"instruction": "Translate", "query": "gato", "chosen": "cat", "rejected": "dog"},
        column="query",
        kind="a prompt",
        columns={"input": "query"},
    ),
    "question and input": Lost(
        row={"question": "Which colour?", "input": "The sky.", **TEXTS},
        column="input",
        kind="a prompt",
        columns=None,
    ),
    "a prompt that the conversations lack": Lost(
        row={"prompt": "Answer in French.", **WHOLE},
        column="prompt",
        kind="a prompt",
        columns=None,
    ),
    "a prompt that one answer repeats": Lost(
        row={"problem": "2+2", "chosen": "2+2 is 4", "rejected": "5"},
        column="problem",
        kind="a prompt",
        columns={"prompt": "problem"},
    ),
}

READ: Mapping[str, tuple[Mapping[str, Any], Mapping[str, int]]] = {
    # A row that reads as it stands, and the columns that are counted as not read.
    "metadata": (
        EXAMPLES["explicit_text"] | {"category": "maths", "model": "m", "source": "web", "year": 1},
        {"category": 1, "model": 1},
    ),
    "attributes, also as text": (
        EXAMPLES["explicit_text"] | {"attributes": '{"full text": [1, 2]}', "attribute": "x y"},
        {"attribute": 1},
    ),
    "names that only contain those of prompts": (
        EXAMPLES["explicit_text"] | {"prompt_id": "a1", "prompt_source": "web", "user_id": "u"},
        {"prompt_id": 1, "prompt_source": 1, "user_id": 1},
    ),
    "no words": (
        EXAMPLES["explicit_text"] | {"turns": 2, "user": "17", "context": " ", "system": None},
        {},
    ),
    "UltraFeedback as binarised": (
        WHOLE | {"prompt": "Which  colour?", "messages": WHOLE["chosen"], "prompt_id": "a"},
        {"prompt_id": 1},
    ),
    "an instruction that is the prompt": (
        EXAMPLES["explicit_text"] | {"instruction": "2+3=", "text": "2+3=5"},
        {},
    ),
    "a context inside the prompt": (
        {"prompt": "It is night. Which colour?", "context": "It is night.", **TEXTS},
        {},
    ),
    "the judge's messages": (
        EXAMPLES["question"] | {"labelling_prompt": TURNS, "generations": ["a", "b"]},
        {"labelling_prompt": 1, "generations": 1},
    ),
}


def source_of(folder: Path, *rows: Mapping[str, Any], **fields: Any) -> Source:
    return Source(path=str(write_jsonl(folder / "rows.jsonl", rows)), **fields)


def unread_of(source: Source) -> UnreadColumns:
    opened = open_source(source)
    assert list(opened.rows)
    return opened.counter.total


def complaint(source: Source) -> str:
    """The error of a source, which is that of both ways to read it."""
    with pytest.raises(DataError) as raised:
        list(open_source(source).rows)
    message = str(raised.value)
    with pytest.raises(DataError, match=re.escape(message)):
        load_comparisons((source,), seed=1)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("column", "in_option"),
    [
        ("user's prompt", True),
        ("$text; `text`", True),
        ("input, text", False),
        ("input=text", False),
        ("input\x1b text", False),
    ],
)
def test_a_remedy_can_be_pasted(column: str, in_option: bool, tmp_path: Path) -> None:
    """Into a recipe, and into a shell where ``--columns`` can hold the name."""
    source = source_of(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "b", column: "And?"})
    message = complaint(source)
    _, _, shown = message.partition("ignore it with `columns: ")
    columns, _, option = shown.partition("}`")
    assert yaml.safe_load(f"{columns}}}") == {column: None}
    assert ("--columns" in option) == in_option
    if in_option:
        (_, pasted) = shlex.split(option[option.index("--columns") :].removesuffix(")."))
        remedied = source.model_copy(update={"columns": parse_columns([pasted])})
        assert counts(remedied).columns == {}


def counts(source: Source) -> UnreadColumns:
    """What is not read of a source, which is the same both ways to read it."""
    unread = unread_of(source)
    assert load_comparisons((source,), seed=1).sources[0].unread == unread
    return unread


@pytest.mark.parametrize("name", LOST)
def test_a_prompt_that_is_not_read_is_an_error_with_its_remedy(name: str, tmp_path: Path) -> None:
    lost = LOST[name]
    source = source_of(tmp_path, lost.row)
    message = complaint(source)
    assert message.startswith(
        f"{source.path}:1: the column {lost.column} looks like {lost.kind},"
        " but the format does not read it;"
    )
    assert f"ignore it with `columns: {{{lost.column}: null}}`" in message
    left_out = source.model_copy(update={"columns": {lost.column: None}})
    assert lost.column not in counts(left_out).columns
    if lost.columns is None:
        assert "read it with" not in message
        return
    shown = yaml.safe_dump(
        dict(lost.columns), allow_unicode=True, default_flow_style=True, sort_keys=False
    ).strip()
    option = ",".join(f"{ours}={theirs}" for ours, theirs in lost.columns.items())
    assert f"read it with `columns: {shown}`" in message
    assert f"--columns {shlex.quote(option)})" in message
    remedied = source.model_copy(update={"columns": dict(lost.columns)})
    ((_, _, _, comparison),) = open_source(remedied).rows
    assert counts(remedied).columns == {}
    if lost.kind == "a system message":
        assert comparison.prompt[0] == Message(role="system", content="Be brief.")


@pytest.mark.parametrize("name", READ)
def test_what_is_read_or_harmless_is_counted_by_name(name: str, tmp_path: Path) -> None:
    row, columns = READ[name]
    unread = counts(source_of(tmp_path, row))
    assert (unread.rows, dict(unread.columns)) == (1, dict(columns))


@pytest.mark.parametrize("name", READERS)
def test_the_rule_holds_for_every_format(name: str, tmp_path: Path) -> None:
    row = EXAMPLES[name]
    for format_ in (None, name):
        unread_of(source_of(tmp_path, row, format=format_))
        for column in ("system_prompt", "problem", "chat_history"):
            source = source_of(tmp_path, row | {column: "Unheard of."}, format=format_)
            assert f":1: the column {column} looks like a" in complaint(source)
            left_out = source.model_copy(update={"columns": {column: None}})
            assert column not in unread_of(left_out).columns


def test_a_named_format_keeps_the_rule_and_a_later_row_too(tmp_path: Path) -> None:
    row = EXAMPLES["explicit_text"]
    named = source_of(tmp_path, row, format="implicit_text")
    assert "looks like a prompt, but the format does not read it; set a `format` that reads it" in (
        complaint(named)
    )
    later = source_of(tmp_path, row, row | {"history": "Earlier: nothing."})
    assert f"{later.path}:2: the column history looks like a prompt" in complaint(later)


NOTE = "Because Lima is the capital of Peru."
ANSWERS = {"chosen": [assistant("Lima.")], "rejected": [assistant("Cusco.")]}
PARTLY: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "blank text": (
        {"prompt": "What is the capital of Peru?", **TEXTS, "rationale": NOTE},
        {"prompt": "", **TEXTS, "rationale": NOTE},
    ),
    "no messages": (
        {"prompt": [user("The capital?")], **ANSWERS, "comment": NOTE},
        {"prompt": [], **ANSWERS, "comment": NOTE},
    ),
    "nothing that both texts begin with": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green.", "reason": NOTE},
        {**TEXTS, "reason": NOTE},
    ),
}


@pytest.mark.parametrize("name", PARTLY)
@pytest.mark.parametrize("blank_first", [False, True])
def test_a_note_beside_some_blank_prompts_is_a_note(
    name: str, blank_first: bool, tmp_path: Path
) -> None:
    filled, blank = PARTLY[name]
    rows = [blank, filled] if blank_first else [filled, blank]
    (column,) = set(filled) - {"prompt", "chosen", "rejected"}
    assert counts(source_of(tmp_path, *rows)).columns == {column: 2}


@pytest.mark.parametrize("rows", [1, 19, 20, 500])
def test_a_note_beside_no_prompt_at_all_is_an_error(rows: int, tmp_path: Path) -> None:
    """Soon, so that nobody scores a whole file before."""
    opened = open_source(source_of(tmp_path, *[{**TEXTS, "reason": NOTE}] * rows))
    read: list[int] = []
    with pytest.raises(DataError, match=r":1: the column reason looks like a prompt"):
        read.extend(number for number, *_ in opened.rows)
    assert len(read) <= 20


def test_a_null_that_names_no_column_is_an_error(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"problem": "Q", **TEXTS}, columns={"problme": None})
    assert "the column problem looks like a prompt" in complaint(source)
    source = source_of(tmp_path, TEXTS, columns={"problme": None, "system": None})
    assert "names problme, which no row has" in complaint(source)


def test_a_system_column_is_read_where_it_fits(tmp_path: Path) -> None:
    mapped = {"system": "rule"}
    text = source_of(tmp_path, EXAMPLES["explicit_text"] | {"rule": "Be brief."}, columns=mapped)
    assert "system holds a system message, but the prompt is plain text" in complaint(text)
    second = EXAMPLES["explicit_conversational"] | {"rule": "Be brief."}
    second |= {"prompt": [{"role": "system", "content": "Rhyme."}, user("Hi")]}
    assert "the prompt already starts with one" in complaint(
        source_of(tmp_path, second, columns=mapped)
    )
    without = EXAMPLES["explicit_conversational"] | {"rule": None}
    ((*_, comparison),) = open_source(source_of(tmp_path, without, columns=mapped)).rows
    assert comparison.prompt == (Message(role="user", content="Capital of Peru?"),)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SYSTEM-Prompt", "a system message"),
        ("systemprompt", "a system message"),
        ("User Query", "a prompt"),
        ("conversations", "a prompt"),
        ("full_text", "a prompt"),
        ("dialogues", "a prompt"),
        ("content", None),
        ("input_ids", None),
        ("context_length", None),
        ("prompt" * 20, None),
        ("subset", None),
        ("", None),
    ],
)
def test_names_are_compared_without_case_and_separators(name: str, kind: str | None) -> None:
    assert kind_of_name(name) == kind


def test_shares_of_rows_are_those_with_text(tmp_path: Path) -> None:
    rows = [EXAMPLES["explicit_text"] | {"a": "x", "b": "y" if n < 2 else ""} for n in range(8)]
    unread = counts(source_of(tmp_path, *rows))
    assert unread.sentence("rows") == ("rows: ignored columns: a, b (25% of rows).")


def test_no_prompt_in_any_row_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(tmp_path, TEXTS, {"headline": "Skies", **TEXTS})
    assert counts(source).without_prompt == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("rows: none of the 2 rows has a prompt")
    caplog.clear()
    by_chance = {"chosen": "The sky is blue", "rejected": "The grass is green"}
    one = source_of(
        tmp_path, by_chance, {"chosen": "The sky is blue", "rejected": "The sky is red"}
    )
    assert counts(one).without_prompt == 1
    assert not caplog.records


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_row_is_counted_or_an_error(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(READERS)))
    more = st.dictionaries(st.sampled_from([*COLUMNS, "system_prompt", "note"]), JSON, max_size=3)
    drawn = data.draw(st.just(EXAMPLES[name]) | damaged(EXAMPLES[name]))
    row = {**(drawn if isinstance(drawn, dict) else {}), **data.draw(more)}
    named = TrackedRow(row)
    source = Source(path="rows.jsonl", format=name)
    counter = UnreadCounter(source)
    try:
        comparison = to_comparison(READERS[name], named, number=1, where="rows:1", source="rows")
        counter.count(named, comparison, row)
        error = ""
    except DataError as raised:
        error = str(raised)
    assert error.startswith("rows:1: ") if error else counter.total.rows == 1
    assert not set(counter.total.columns) & {"prompt", "problem", "system_prompt", "conversation"}
    for line in counter.total.lines("rows"):
        assert "\n" not in line


def test_the_audit_reports_what_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def audit(*arguments: str) -> tuple[dict[str, Any], str]:
        assert main(["data", "audit", *arguments, "--json"]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out), " ".join(captured.err.split())

    rows = [{"headline": f"Sky {n}", **TEXTS} for n in range(4)]
    lost = write_jsonl(tmp_path / "lost.jsonl", rows)
    fine = write_jsonl(tmp_path / "fine.jsonl", [EXAMPLES["explicit_text"]])
    facts, screen = audit(str(lost), str(fine))
    (finding,) = (f for f in facts["findings"] if f["check"] == "no_prompt")
    assert (finding["severity"], finding["rows"]) == ("error", 4)
    assert "No prompt in any row" in screen
    assert "lost: ignored columns: headline." in screen
    assert [part["unread"]["columns"] for part in facts["parts"]] == [{"headline": 4}, {}]
    assert main(["data", "audit", str(lost), "--strict"]) == 1
    capsys.readouterr()
    facts, screen = audit(str(lost), "--eval", str(lost), "--columns", "prompt=headline")
    assert [f["rows"] for f in facts["findings"] if f["check"] == "no_prompt"] == [0]
    assert "ignored columns" not in screen


@pytest.mark.heavy
def test_the_audit_counts_text_beside_a_chat_template(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rows, count in (("text", text_rows(3), 3), ("chat", pair_rows(3), 0)):
        data = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        assert main(["data", "audit", str(data), "--tokenizer", str(tiny_base), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert [f["rows"] for f in facts["findings"] if f["check"] == "plain_text"] == [count]
        assert main(["data", "preview", str(data), "--model", str(tiny_base)]) == 0
        assert ("data.as_chat: true" in capsys.readouterr().err) == (count > 0)


# --- every command, Python and HTTP --------------------------------------------------------------


@pytest.fixture(scope="module")
def lost_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"conversation": f"Which colour has sky {n}?", **TEXTS} for n in range(8)]
    return write_jsonl(tmp_path_factory.mktemp("lost") / "lost.jsonl", rows)


COMMANDS: Mapping[str, Callable[[Path, Path, Path, Path], list[str]]] = {
    # (recipe, run, data, out) -> arguments
    "train": lambda recipe, run, data, out: ["train", str(recipe), "--out", str(out)],
    "plan": lambda recipe, run, data, out: ["plan", str(recipe)],
    "eval": lambda recipe, run, data, out: ["eval", str(run), str(data), "--out", str(out)],
    "compare": lambda recipe, run, data, out: [
        *("compare", str(run), f"{run}/checkpoints/last", str(data), "--out", str(out)),
    ],
    "score": lambda recipe, run, data, out: ["score", str(run), str(data), "--out", f"{out}.jsonl"],
    "best-of": lambda recipe, run, data, out: [
        *("best-of", str(run), str(data), "--out", f"{out}.jsonl"),
    ],
    "audit": lambda recipe, run, data, out: ["data", "audit", str(data), "--out", str(out)],
    "preview": lambda recipe, run, data, out: [
        *("data", "preview", str(data), "--model", str(run), "--html", f"{out}.html"),
    ],
    "convert": lambda recipe, run, data, out: [
        *("data", "convert", str(data), "--to", "ranked", "--out", f"{out}.jsonl"),
    ],
    "split": lambda recipe, run, data, out: ["data", "split", str(data), "--out", str(out)],
    "perturb": lambda recipe, run, data, out: [
        *("data", "perturb", str(data), "--perturbations", "all", "--out", f"{out}.jsonl"),
    ],
}


@pytest.mark.heavy
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_error_and_the_option(
    command: str,
    tiny_base: Path,
    finished_run: Path,
    lost_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_of(tiny_base, lost_file, num_train_epochs=1)
    recipe["evaluate"] = {"perturbation_tests": 0}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    checkpoint = next((finished_run / "checkpoints").iterdir())
    arguments = [
        argument.replace("checkpoints/last", f"checkpoints/{checkpoint.name}")
        for argument in COMMANDS[command](path, finished_run, lost_file, tmp_path / "out")
    ]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"{lost_file}:1: the column conversation looks like a prompt" in error
    assert "--columns prompt=conversation)" in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]
    assert main([*arguments, "--columns", "prompt=conversation"]) == 0


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_route_ignores_a_prompt(name: str) -> None:
    protocol = PROTOCOLS[name]
    request: TypeAdapter[Any] = TypeAdapter(protocol.request)
    for column, kind in (("system_prompt", "a system message"), ("instruction", "a prompt")):
        with pytest.raises(
            ValidationError, match=f"looks like {kind}, but this endpoint does not read it;"
        ):
            request.validate_python({**protocol.example, column: "Be brief."})
    # What clients send beside: an end user, other names, empty values, the number of an image.
    request.validate_python(
        {**protocol.example, "user": "u-1", "best_of": 2, "system": "", "image": 5}
    )


# --- text on a base with a chat template ---------------------------------------------------------


def text_rows(count: int) -> list[dict[str, str]]:
    """The rows of :func:`pair_rows` as plain text."""
    return [
        {name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")}
        for row in pair_rows(count)
    ]


@pytest.mark.heavy
def test_as_chat_decides_how_text_is_encoded(tiny_base: Path, tmp_path: Path) -> None:
    from plaudit.recipe.load import parse_recipe
    from plaudit.tokens.encode import encode
    from plaudit.training.prepare import make_encoder, prepare_tokenizer, text_remark

    def read(rows: list[dict[str, Any]]) -> list[Comparison]:
        return [comparison for *_, comparison in open_source(source_of(tmp_path, *rows)).rows]

    def ids(as_chat: bool | None, comparisons: list[Comparison]) -> list[list[int]]:
        recipe = recipe_of(tiny_base, tmp_path)
        recipe["data"]["as_chat"] = as_chat
        parsed = parse_recipe(recipe, "recipe")
        tokenizer = prepare_tokenizer(parsed.model, parsed.tokens, str(tiny_base))
        encoder = make_encoder(parsed.tokens, tokenizer, None, as_chat=as_chat)
        assert (text_remark(encoder, as_chat, 1, 2) is None) == (as_chat is not None)
        assert text_remark(encoder, as_chat, 0, 2) is None
        tokenizer.chat_template = None
        assert text_remark(encoder, as_chat, 1, 2) is None
        if as_chat:
            with pytest.raises(RecipeError, match=r"as_chat` is true, but .* no chat template"):
                make_encoder(parsed.tokens, tokenizer, None, as_chat=as_chat)
        tokenizer = prepare_tokenizer(parsed.model, parsed.tokens, str(tiny_base))
        trees = encode(make_encoder(parsed.tokens, tokenizer, None, as_chat=as_chat), comparisons)
        assert all(isinstance(tree, TokenTree) for tree in trees)
        return [
            [*tree.prefix.tolist(), *branch.tolist()]
            for tree in trees
            if isinstance(tree, TokenTree)
            for branch in tree.branches
        ]

    text, chat = read(text_rows(3)), read(pair_rows(3))
    assert ids(True, text) == ids(None, chat)
    assert ids(False, text) == ids(None, text) != ids(True, text)


@pytest.mark.heavy
def test_text_on_a_chat_base_is_said_once_and_as_chat_is_recorded(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from plaudit.reward_model import load as load_model
    from plaudit.training.run import train

    data = write_jsonl(tmp_path / "text.jsonl", text_rows(24))

    def run(name: str, as_chat: bool | None) -> tuple[Path, list[str]]:
        recipe = recipe_of(tiny_base, data, max_steps=2)
        recipe["data"]["as_chat"] = as_chat
        recipe["evaluate"] = {"perturbation_tests": 0}
        caplog.clear()
        train(recipe, tmp_path / name)
        lines = [record.getMessage() for record in caplog.records]
        return tmp_path / name, [line for line in lines if "as_chat" in line]

    unset, (line,) = run("unset", None)
    assert line.startswith("24 of 24 comparisons are plain text, and the base has a chat template")
    turned, silence = run("turned", True)
    assert silence == []
    recorded = [json.loads((run / "plaudit.json").read_text())["text"] for run in (unset, turned)]
    assert recorded == ["text", "chat"]
    row = text_rows(1)[0]
    messages = [user(row["prompt"])], [[assistant(row["chosen"])], [assistant(row["rejected"])]]
    text = row["prompt"], [row["chosen"], row["rejected"]]
    model = load_model(turned)
    assert model.score(*text) == model.score(*messages)
    other = load_model(unset)
    assert other.score(*text) != other.score(*messages)
