"""Readers of preference sets and benchmarks as they were published.

Benchmarks' rows are read as pairs here, to train or evaluate on them like on any other data; their
texts are read as turns, because they are questions and answers of chats. Their scores by their own
rules are suites of ``plaudit eval``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from plaudit.data.formats import values
from plaudit.data.formats.records import (
    Messages,
    ParsedRow,
    Reader,
    answered,
    asked,
    by_lead,
    pair,
    pair_of_whole,
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
        *asked(first),
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
        prompt=asked(values.text(row, "instruction")),
        responses=tuple(
            answered(values.inner_text(completion, "response", f"completions[{index}]"))
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
        responses=(answered(values.text(row, "response")),),
        grades=() if helpfulness is None else (helpfulness,),
    )


def helpsteer3(row: Row) -> ParsedRow:
    """HelpSteer3's preferences: messages, two responses, and the sign of HelpSteer2."""
    context = values.messages(row, "context")
    return _by_sign(row, context, ("response1", "response2"), "overall_preference")


def nectar(row: Row) -> ParsedRow:
    """Nectar: a dialogue and its answers, rank 1 the best."""
    dialogue = values.text(row, "prompt")
    turns = hh_turns(dialogue) if HUMAN in dialogue else asked(dialogue)
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    answers = values.objects(row, "answers")
    return _ranked(
        turns, answers, tuple(_answer(item, index) for index, item in enumerate(answers))
    )


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
    return by_lead(
        asked(values.text(row, "prompt")),
        answered(values.text(row, "response_0")),
        answered(values.text(row, "response_1")),
        1 - 2 * better,
    )


def shp(row: Row) -> ParsedRow:
    """SHP: a post and two comments; label 1 means that A is preferred, 0 that B is."""
    label = values.number(row, "labels")
    if label not in (0.0, 1.0):
        raise DataError("labels is neither 0 nor 1; expected 1 where A is preferred, 0 where B is.")
    return by_lead(
        asked(values.text(row, "history")),
        answered(values.text(row, "human_ref_A")),
        answered(values.text(row, "human_ref_B")),
        2 * label - 1,
    )


def webgpt(row: Row) -> ParsedRow:
    """WebGPT comparisons: a question and two answers with a score each."""
    lead = values.number(row, "score_0") - values.number(row, "score_1")
    asks = values.value_of(row, "question")
    question = values.text(asks, "full_text") if isinstance(asks, dict) else None
    return by_lead(
        asked(values.text(row, "question") if question is None else question),
        answered(values.text(row, "answer_0")),
        answered(values.text(row, "answer_1")),
        lead,
        strength=abs(lead),
    )


def arena(row: Row) -> ParsedRow:
    """Chatbot Arena: two conversations and the winner."""
    winner = values.text(row, "winner")
    leads = {"model_a": 1.0, "model_b": -1.0, "tie": 0.0, "tie (bothbad)": 0.0, "both_bad": 0.0}
    if winner not in leads:
        raise DataError(f"winner is not among {', '.join(leads)}.")
    whole = pair_of_whole(
        values.messages(row, "conversation_a"), values.messages(row, "conversation_b")
    )
    lead = leads[winner]
    return replace(whole, grades=(float(lead > 0), float(lead < 0)))


def _by_sign(row: Row, prompt: Messages, responses: tuple[str, str], column: str) -> ParsedRow:
    """Two responses and a preference from -3 (the first is much better) to 3; 0 is a tie."""
    preference = values.optional_number(row, column)
    first, second = (answered(values.text(row, name)) for name in responses)
    if preference is None:
        return ParsedRow(prompt=prompt, responses=(first, second), grades=())
    return by_lead(prompt, first, second, -preference, strength=abs(preference))


def _ranked(
    prompt: Messages, items: list[dict[str, object]], responses: tuple[Messages, ...]
) -> ParsedRow:
    """Responses with a rank each, the lowest the best."""
    ranks = [values.number(item, "rank") for item in items]
    return ParsedRow(prompt=prompt, responses=responses, grades=tuple(0.0 - rank for rank in ranks))


def _answer(item: Row, index: int) -> Messages:
    return answered(values.inner_text(item, "answer", f"answers[{index}]"))


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
        asked(values.text(row, "prompt")),
        answered(values.text(row, "chosen")),
        answered(values.text(row, "rejected")),
    )


def answer_lists(row: Row) -> ParsedRow:
    """RewardBench 2 and RM-Bench: a question, right answers (grade 1) and wrong ones (grade 0)."""
    chosen, rejected = values.texts(row, "chosen"), values.texts(row, "rejected")
    return ParsedRow(
        prompt=asked(values.text(row, "prompt")),
        responses=tuple(answered(text) for text in chosen + rejected),
        grades=(1.0,) * len(chosen) + (0.0,) * len(rejected),
    )


def llmbar(row: Row) -> ParsedRow:
    """LLMBar: two outputs for an input, and the number (1 or 2) of the better one."""
    label = values.number(row, "label")
    if label not in (1.0, 2.0):
        raise DataError("label is neither 1 nor 2; expected the number of the better output.")
    return by_lead(
        asked(values.text(row, "input")),
        answered(values.text(row, "output_1")),
        answered(values.text(row, "output_2")),
        3 - 2 * label,
    )


READERS: Final = (
    Reader(
        name="ultrafeedback",
        description="UltraFeedback: an instruction and completions with an overall score",
        columns=("instruction", "completions"),
        recognises=lambda row: (
            isinstance(row["instruction"], str) and values.is_messages(row["completions"])
        ),
        parse=ultrafeedback,
    ),
    Reader(
        name="helpsteer2",
        description="HelpSteer2: two responses and the strength of the preference",
        columns=("prompt", "response_1", "response_2", "preference_strength"),
        recognises=lambda row: values.all_text(row, "prompt", "response_1", "response_2"),
        parse=helpsteer2,
    ),
    Reader(
        name="helpsteer2_ratings",
        description="HelpSteer2: one response and its ratings",
        columns=("prompt", "response", "helpfulness"),
        recognises=lambda row: values.all_text(row, "prompt", "response"),
        parse=helpsteer2_ratings,
    ),
    Reader(
        name="helpsteer3",
        description="HelpSteer3: messages, two responses and the preference",
        columns=("context", "response1", "response2", "overall_preference"),
        recognises=lambda row: (
            values.is_messages(row["context"]) and values.all_text(row, "response1", "response2")
        ),
        parse=helpsteer3,
    ),
    Reader(
        name="nectar",
        description="Nectar: a dialogue and its ranked answers",
        columns=("prompt", "answers"),
        recognises=lambda row: (
            isinstance(row["prompt"], str) and values.is_messages(row["answers"])
        ),
        parse=nectar,
    ),
    Reader(
        name="nemo",
        description="NeMo-RL: a context and its ranked completions",
        columns=("context", "completions"),
        recognises=lambda row: values.all_messages(row, "context", "completions"),
        parse=nemo,
    ),
    Reader(
        name="pku_saferlhf",
        description="PKU-SafeRLHF: two responses and the number of the better",
        columns=("prompt", "response_0", "response_1", "better_response_id"),
        recognises=lambda row: values.all_text(row, "prompt", "response_0", "response_1"),
        parse=pku_saferlhf,
    ),
    Reader(
        name="shp",
        description="SHP: a post and two comments",
        columns=("history", "human_ref_A", "human_ref_B", "labels"),
        recognises=lambda row: values.all_text(row, "history", "human_ref_A", "human_ref_B"),
        parse=shp,
    ),
    Reader(
        name="webgpt",
        description="WebGPT comparisons: a question and two answers with scores",
        columns=("question", "answer_0", "answer_1", "score_0", "score_1"),
        recognises=lambda row: (
            isinstance(row["question"], (str, dict))
            and values.all_text(row, "answer_0", "answer_1")
        ),
        parse=webgpt,
    ),
    Reader(
        name="arena",
        description="Chatbot Arena: two conversations and the winner",
        columns=("conversation_a", "conversation_b", "winner"),
        recognises=lambda row: values.all_messages(row, "conversation_a", "conversation_b"),
        parse=arena,
    ),
    Reader(
        name="rewardbench",
        description="RewardBench: prompt, chosen, rejected and where they are from",
        columns=("prompt", "chosen", "rejected"),
        recognises=lambda row: (
            is_rewardbench(row) and values.all_text(row, "prompt", "chosen", "rejected")
        ),
        parse=rewardbench,
    ),
    Reader(
        name="answer_lists",
        description="RewardBench 2 and RM-Bench: prompt, lists of right and wrong answers",
        columns=("prompt", "chosen", "rejected"),
        recognises=lambda row: (
            isinstance(row["prompt"], str)
            and all(values.is_texts(row[column]) for column in ("chosen", "rejected"))
        ),
        parse=answer_lists,
    ),
    Reader(
        name="llmbar",
        description="LLMBar: an input, two outputs and the number of the better",
        columns=("input", "output_1", "output_2", "label"),
        recognises=lambda row: values.all_text(row, "input", "output_1", "output_2"),
        parse=llmbar,
    ),
)
"""Rows of :data:`plaudit.data.formats.readers.READERS`."""
