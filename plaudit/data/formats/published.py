"""Readers of preference sets and benchmarks as they were published.

Benchmarks' rows are read as pairs here, to train or evaluate on them like on any other data; their
texts are read as turns, because they are questions and answers of chats. Their scores by their own
rules are suites of ``plaudit eval``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Final

from plaudit.data.formats import values
from plaudit.data.formats.records import (
    Messages,
    ParsedRow,
    assistant_turn,
    pair,
    pair_by_lead,
    pair_of_conversations,
    reader_of,
    user_turn,
)
from plaudit.data.formats.values import Row
from plaudit.errors import DataError
from plaudit.types import Message

HUMAN: Final = "\n\nHuman:"
ASSISTANT: Final = "\n\nAssistant:"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def hh_turns(text: str) -> Messages:
    """The turns of a dialogue. Turns of one role in a row become one: templates refuse them."""
    turns: list[tuple[str, str]] = []
    _, *pieces = _HH_TURN.split(text)
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{words.strip()}".strip())
        else:
            turns.append((role, words.strip()))
    return tuple(Message(role=role, content=content) for role, content in turns)


def helpsteer_turns(text: str) -> Messages:
    """A HelpSteer2 prompt: its first words are the user's, ``<extra_id_1>`` opens later turns."""
    first, *pieces = _HELPSTEER_TURN.split(text)
    later = zip(pieces[::2], pieces[1::2], strict=True)
    return (
        *user_turn(first),
        *(
            Message(role="user" if name == "User" else "assistant", content=words)
            for name, words in later
        ),
    )


# --- preference sets ----------------------------------------------------------------------------


def ultrafeedback(row: Row) -> ParsedRow:
    """UltraFeedback before binarising: an instruction and completions with an overall score."""
    completions = values.objects(row, "completions")
    scores = [values.optional_number(completion, "overall_score") for completion in completions]
    known = tuple(score for score in scores if score is not None)
    return ParsedRow(
        prompt=user_turn(values.text(row, "instruction")),
        responses=tuple(
            assistant_turn(values.inner_text(completion, "response", f"completions[{index}]"))
            for index, completion in enumerate(completions)
        ),
        grades=known if len(known) == len(scores) else (),
        strength=abs(known[0] - known[1]) if len(known) == len(scores) == 2 else None,
    )


def helpsteer2(row: Row) -> ParsedRow:
    """HelpSteer2's preferences: below 0 the first response is better, above 0 the second."""
    return _by_sign(
        row,
        helpsteer_turns(values.text(row, "prompt")),
        ("response_1", "response_2"),
        "preference_strength",
    )


def helpsteer2_ratings(row: Row) -> ParsedRow:
    """HelpSteer2's ratings: one response and its helpfulness; the other ratings are metadata."""
    helpfulness = values.optional_number(row, "helpfulness")
    return ParsedRow(
        prompt=helpsteer_turns(values.text(row, "prompt")),
        responses=(assistant_turn(values.text(row, "response")),),
        grades=() if helpfulness is None else (helpfulness,),
    )


def helpsteer3(row: Row) -> ParsedRow:
    """HelpSteer3's preferences: messages, two responses, and the sign of HelpSteer2."""
    context = values.messages(row, "context")
    return _by_sign(row, context, ("response1", "response2"), "overall_preference")


def nectar(row: Row) -> ParsedRow:
    """Nectar: a dialogue and its answers, rank 1 the best."""
    dialogue = values.text(row, "prompt")
    turns = hh_turns(dialogue) if HUMAN in dialogue else user_turn(dialogue)
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    answers = values.objects(row, "answers")
    texts = [
        values.inner_text(item, "answer", f"answers[{index}]") for index, item in enumerate(answers)
    ]
    return _ranked(turns, answers, tuple(map(assistant_turn, texts)))


def nemo(row: Row) -> ParsedRow:
    """NeMo-RL: a context and its completions, the lowest rank the best."""
    completions = values.objects(row, "completions")
    return _ranked(
        values.messages(row, "context"),
        completions,
        tuple(_inner_messages(item, index) for index, item in enumerate(completions)),
    )


def pku_saferlhf(row: Row) -> ParsedRow:
    """PKU-SafeRLHF: two responses and the number of the more helpful one."""
    better = values.number(row, "better_response_id")
    if better not in (0.0, 1.0):
        raise DataError("better_response_id is neither 0 nor 1; expected a response's number.")
    return pair_by_lead(
        user_turn(values.text(row, "prompt")),
        assistant_turn(values.text(row, "response_0")),
        assistant_turn(values.text(row, "response_1")),
        1 - 2 * better,
    )


def shp(row: Row) -> ParsedRow:
    """SHP: a post and two comments; label 1 means that A is preferred, 0 that B is."""
    label = values.number(row, "labels")
    if label not in (0.0, 1.0):
        raise DataError("labels is neither 0 nor 1; expected 1 where A is preferred, 0 where B is.")
    return pair_by_lead(
        user_turn(values.text(row, "history")),
        assistant_turn(values.text(row, "human_ref_A")),
        assistant_turn(values.text(row, "human_ref_B")),
        2 * label - 1,
    )


def webgpt(row: Row) -> ParsedRow:
    """WebGPT comparisons: a question and two answers with a score each."""
    lead = values.number(row, "score_0") - values.number(row, "score_1")
    asks = values.value_of(row, "question")
    question = values.text(asks, "full_text") if isinstance(asks, dict) else None
    return pair_by_lead(
        user_turn(values.text(row, "question") if question is None else question),
        assistant_turn(values.text(row, "answer_0")),
        assistant_turn(values.text(row, "answer_1")),
        lead,
        strength=abs(lead),
    )


def arena(row: Row) -> ParsedRow:
    """Chatbot Arena: two conversations and the winner."""
    winner = values.text(row, "winner")
    leads = {"model_a": 1.0, "model_b": -1.0, "tie": 0.0, "tie (bothbad)": 0.0, "both_bad": 0.0}
    if winner not in leads:
        raise DataError(f"winner is not among {', '.join(leads)}.")
    whole = pair_of_conversations(
        values.messages(row, "conversation_a"), values.messages(row, "conversation_b")
    )
    lead = leads[winner]
    return replace(whole, grades=(float(lead > 0), float(lead < 0)))


def _by_sign(row: Row, prompt: Messages, responses: tuple[str, str], column: str) -> ParsedRow:
    """Two responses and a preference from -3 (the first is much better) to 3; 0 is a tie."""
    preference = values.optional_number(row, column)
    first, second = (assistant_turn(values.text(row, name)) for name in responses)
    if preference is None:
        return ParsedRow(prompt=prompt, responses=(first, second), grades=())
    return pair_by_lead(prompt, first, second, -preference, strength=abs(preference))


def _ranked(
    prompt: Messages, items: list[dict[str, object]], responses: tuple[Messages, ...]
) -> ParsedRow:
    """Responses with a rank each, the lowest the best."""
    ranks = [values.number(item, "rank") for item in items]
    return ParsedRow(prompt=prompt, responses=responses, grades=tuple(0.0 - rank for rank in ranks))


def _inner_messages(item: Row, index: int) -> Messages:
    try:
        return values.messages(item, "completion")
    except DataError as error:
        raise DataError(f"completions[{index}]: {error}") from error


# --- benchmarks ---------------------------------------------------------------------------------

_REWARDBENCH: Final = frozenset({"subset", "chosen_model", "rejected_model"})


def is_rewardbench(row: Row) -> bool:
    """Whether a row of prompt, chosen and rejected says what RewardBench's rows say."""
    return row.keys() >= _REWARDBENCH


def rewardbench(row: Row) -> ParsedRow:
    """RewardBench: a question, the better and the worse answer."""
    return pair(
        user_turn(values.text(row, "prompt")),
        assistant_turn(values.text(row, "chosen")),
        assistant_turn(values.text(row, "rejected")),
    )


def answer_lists(row: Row) -> ParsedRow:
    """RewardBench 2 and RM-Bench: a question, right answers (grade 1) and wrong ones (grade 0)."""
    chosen, rejected = values.texts(row, "chosen"), values.texts(row, "rejected")
    return ParsedRow(
        prompt=user_turn(values.text(row, "prompt")),
        responses=tuple(assistant_turn(text) for text in chosen + rejected),
        grades=(1.0,) * len(chosen) + (0.0,) * len(rejected),
    )


def llmbar(row: Row) -> ParsedRow:
    """LLMBar: two outputs for an input, and the number (1 or 2) of the better one."""
    label = values.number(row, "label")
    if label not in (1.0, 2.0):
        raise DataError("label is neither 1 nor 2; expected the number of the better output.")
    return pair_by_lead(
        user_turn(values.text(row, "input")),
        assistant_turn(values.text(row, "output_1")),
        assistant_turn(values.text(row, "output_2")),
        3 - 2 * label,
    )


_text = partial(values.all_of, values.is_text)
_any = partial(values.all_of, values.anything)
_messages = partial(values.all_of, values.is_messages)


READERS: Final = (
    reader_of(ultrafeedback, _text("instruction") | _messages("completions")),
    reader_of(
        helpsteer2, _text("prompt", "response_1", "response_2") | _any("preference_strength")
    ),
    reader_of(helpsteer2_ratings, _text("prompt", "response") | _any("helpfulness")),
    reader_of(
        helpsteer3,
        _messages("context") | _text("response1", "response2") | _any("overall_preference"),
    ),
    reader_of(nectar, _text("prompt") | _messages("answers")),
    reader_of(nemo, _messages("context", "completions")),
    reader_of(
        pku_saferlhf, _text("prompt", "response_0", "response_1") | _any("better_response_id")
    ),
    reader_of(shp, _text("history", "human_ref_A", "human_ref_B") | _any("labels")),
    reader_of(
        webgpt,
        {"question": lambda value: isinstance(value, (str, dict))}
        | _text("answer_0", "answer_1")
        | _any("score_0", "score_1"),
    ),
    reader_of(arena, _messages("conversation_a", "conversation_b") | _any("winner")),
    reader_of(rewardbench, _text("prompt", "chosen", "rejected"), when=is_rewardbench),
    reader_of(answer_lists, _text("prompt") | values.all_of(values.is_texts, "chosen", "rejected")),
    reader_of(llmbar, _text("input", "output_1", "output_2") | _any("label")),
)
"""Rows of :data:`plaudit.data.formats.readers.READERS`."""
