"""Which fields and turns chat templates render: small ones, and those of models that TRL ships."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from plaudit.tokens.encode import NOT_RENDERED, Encoder, encode
from plaudit.tokens.rendering import render
from plaudit.types import Comparison, Message, Skipped, TokenTree, Turns
from tests.models import tiny_tokenizer

pytestmark = pytest.mark.heavy

LOOP = "{{% for m in messages %}}{{{{ '<|' ~ m.role ~ '|>' }}}}{}{{% endfor %}}"
TEXT = "{{ m.content }}"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
FIRST_CALL = "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}"
LAST_REASONING = "{% if loop.last %}{{ m.reasoning_content }}{% endif %}"
TOOLS = "{{ tools | tojson if tools }}"

ZONE = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "Tell the time.", "parameters": ZONE},
}


def call(zone: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "clock", "arguments": {"zone": zone}}}


def says(role: str, content: str | None, **extra: Any) -> Message:
    return Message(role=role, content=content, extra=extra)


ASK, AGAIN, NINE = says("user", "Time?"), says("user", "And now?"), says("assistant", "Nine.")
THINKS = says("assistant", "Nine.", reasoning_content="It is dark.")
LOOKS = says("assistant", None, tool_calls=[call("utc")])
LOOKS_TWICE = says("assistant", None, tool_calls=[call("utc"), call("cet")])
ANSWER = says("tool", "9", name="clock")
ESCAPES = "\x1b[31m\n" + "x" * 999


def left_out(template: str, *turns: Message, tools: tuple[dict[str, Any], ...] = ()) -> str | None:
    """What is not rendered of a conversation whose last turn is the response; None: nothing."""
    return outcome(template, turns[:-1], (turns[-1:],), tools)


def outcome(
    template: str, prompt: Turns, responses: tuple[Turns, ...], tools: tuple[dict[str, Any], ...]
) -> str | None:
    found = encoded(template, prompt, responses, tools)
    if not isinstance(found, Skipped):
        return None
    assert found.detail.startswith("pairs.jsonl:1: ")
    return found.field if found.reason == NOT_RENDERED else found.reason


def encoded(
    template: str, prompt: Turns, responses: tuple[Turns, ...], tools: tuple[dict[str, Any], ...]
) -> TokenTree | Skipped:
    comparison = Comparison(
        id="1",
        prompt=prompt,
        responses=responses,
        grades=(),
        group="0",
        source="s",
        where="pairs.jsonl:1",
        tools=tools or None,
    )
    encoder = Encoder(tokenizer=tiny_tokenizer(chat_template=template), max_length=10**6)
    (found,) = encode(encoder, [comparison])
    return found


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (TEXT, (ASK, NINE), None),
        (TEXT, (ASK, LOOKS), "tool_calls"),
        (CALLS, (ASK, LOOKS), "content of user"),
        (TEXT + CALLS, (ASK, LOOKS), None),
        (TEXT + CALLS, (ASK, LOOKS_TWICE), None),
        (TEXT + FIRST_CALL, (ASK, LOOKS_TWICE), "tool_calls"),
        (TEXT, (ASK, THINKS), "reasoning_content"),
        (TEXT, (ASK, says("assistant", "Nine.", thinking="It is dark.")), "thinking"),
        (TEXT + LAST_REASONING, (ASK, THINKS), None),
        # transformers hands on older names of it, and a template may drop that of earlier turns.
        (TEXT + LAST_REASONING, (ASK, says("assistant", "Nine.", reasoning="It is dark.")), None),
        (TEXT + LAST_REASONING, (ASK, THINKS, AGAIN, NINE), None),
        (TEXT, (ASK, THINKS, AGAIN, NINE), "reasoning_content"),
        (TEXT, (ASK, says("assistant", "Nine.", refusal="No.")), "refusal"),
        # Nothing is said by metadata, numbers and empty values.
        (TEXT, (ASK, says("assistant", "Nine.", name="b", id="7", seed=3, good=True)), None),
        (TEXT, (ASK, says("assistant", "Nine.", tool_calls=[], thinking=" ", audio={})), None),
        # A text that the template changes is rendered, one that stands there by chance is not.
        ("{{ m.content | upper }}", (ASK, NINE), None),
        ("{{ m.content.split('</think>')[-1] }}", (ASK, says("assistant", "a</think>b")), None),
        (
            "{% if m.role != 'tool' %}9 {{ m.content }}{% endif %}",
            (ANSWER, NINE),
            "content of tool",
        ),
        ("{% if m.role != 'system' %}" + TEXT + "{% endif %}", (ANSWER, NINE), None),
        ("{% if not loop.first %}" + TEXT + "{% endif %}", (ASK, NINE), "content of user"),
        # What makes the template raise when it is missing has been read.
        ("{{ m.content ~ m.tool_calls[0].function.name }}", (LOOKS, LOOKS), None),
        ("{{ raise_exception('no') }}", (ASK, NINE), "template_error"),
    ],
)
def test_what_a_template_leaves_out(
    template: str, turns: tuple[Message, ...], expected: str | None
) -> None:
    assert left_out(LOOP.format(template), *turns) == expected


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        ("{{ raise_exception('no ' ~ m.content) }}", (ASK, says("user", ESCAPES))),
        (TEXT, (ASK, says("assistant", "Nine.", **{ESCAPES: "text"}))),
        ("{% if m.role == 'user' %}" + TEXT + "{% endif %}", (ASK, says(ESCAPES, "text"))),
    ],
)
def test_reasons_quote_no_control_characters_and_no_long_text(
    template: str, turns: tuple[Message, ...]
) -> None:
    refused = encoded(LOOP.format(template), turns[:-1], (turns[-1:],), ())
    assert isinstance(refused, Skipped)
    assert f"{refused.detail}{refused.field}".isprintable()
    assert len(refused.detail) < 300


def test_tools_are_rendered_or_left_out() -> None:
    texts = LOOP.format(TEXT)
    assert left_out(texts, ASK, NINE, tools=(CLOCK,)) == "tools"
    assert left_out(TOOLS + texts, ASK, NINE, tools=(CLOCK,)) is None
    assert outcome(TOOLS + texts, "Time?", (" Nine.",), (CLOCK,)) == "tools", "plain text has none"


def test_every_response_is_looked_at() -> None:
    template = LOOP.format(TEXT)
    assert outcome(template, (ASK,), ((NINE,), (says("assistant", "Ten."),)), ()) is None
    assert outcome(template, (ASK,), ((NINE,), (THINKS,)), ()) == "reasoning_content"


def test_what_another_rendering_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing for texts of the common roles, one rendering for any number of other parts."""
    rendered: list[object] = []

    def counted(*arguments: Any) -> Any:
        rendered.append(arguments)
        return render(*arguments)

    monkeypatch.setattr("plaudit.tokens.unrendered.render", counted)
    template = LOOP.format(TEXT + CALLS)
    texts = (says("system", "Be brief. "), ASK, NINE, AGAIN, says("assistant", " Ten.", name="b"))
    assert left_out(template, *texts) is None
    assert len(rendered) == 0
    called = (ASK, *(turn for _ in range(8) for turn in (LOOKS_TWICE, ANSWER)), NINE)
    assert left_out(template, *called) is None
    assert len(rendered) == 1
    assert left_out(template, *called[:-1], THINKS) == "reasoning_content"


# ---- templates of real models ------------------------------------------------------------------

CONVERSATIONS: dict[str, tuple[tuple[Message, ...], tuple[dict[str, Any], ...]]] = {
    "texts": ((says("user", "Time?"), NINE, AGAIN, says("assistant", "Ten.")), ()),
    "tools": ((ASK, NINE), (CLOCK,)),
    "call": ((ASK, LOOKS), (CLOCK,)),
    "calls": ((ASK, LOOKS_TWICE), (CLOCK,)),
    "text and call": ((ASK, says("assistant", "I look.", tool_calls=[call("utc")])), (CLOCK,)),
    "answer": ((ASK, LOOKS, ANSWER, NINE), (CLOCK,)),
    "reasoning": ((ASK, THINKS), ()),
    "earlier reasoning": ((ASK, THINKS, AGAIN, NINE), ()),
}
NO_REASONING = dict.fromkeys(("reasoning", "earlier reasoning"), "reasoning_content")
LEFT_OUT: dict[str, dict[str, str]] = {
    "gemma": {
        **NO_REASONING,
        **dict.fromkeys(("tools", "call", "calls", "text and call"), "tools"),
        "answer": "template_error",
    },
    "gptoss": {"calls": "tool_calls"},
    "llama3_1": {
        **NO_REASONING,
        "calls": "template_error",
        "text and call": "content of assistant",
    },
    "qwen2_5": NO_REASONING,
    "qwen3": {},
}


@pytest.mark.parametrize("model", LEFT_OUT)
def test_templates_of_models(model: str) -> None:
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "chat_templates" / f"{model}.jinja"
    template = path.read_text(encoding="utf-8")
    found = {
        name: left_out(template, *turns, tools=tools)
        for name, (turns, tools) in CONVERSATIONS.items()
    }
    assert {name: what for name, what in found.items() if what} == LEFT_OUT[model]
