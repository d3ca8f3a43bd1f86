"""Readers of preference sets as they were published."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from plaudit.data.formats import values
from plaudit.data.formats.parsed import Parsed, Reader, by_lead, pair_of_whole
from plaudit.data.formats.turns import HUMAN, Messages, answered, asked, helpsteer_turns, hh_turns
from plaudit.data.formats.values import Row
from plaudit.errors import DataError


def ultrafeedback(row: Row) -> Parsed:
    """UltraFeedback before binarising: an instruction and completions with an overall score."""
    completions = values.objects(row, "completions")
    scores = [values.optional_number(completion, "overall_score") for completion in completions]
    known = tuple(score for score in scores if score is not None)
    return Parsed(
        prompt=asked(values.text(row, "instruction")),
        responses=tuple(
            answered(values.inner_text(completion, "response", f"completions[{index}]"))
            for index, completion in enumerate(completions)
        ),
        grades=known if len(known) == len(scores) else (),
        strength=abs(known[0] - known[1]) if len(known) == len(scores) == 2 else None,
    )


def helpsteer2(row: Row) -> Parsed:
    """HelpSteer2's preferences: below 0 the first response is better, above 0 the second."""
    return _by_sign(
        row,
        helpsteer_turns(values.text(row, "prompt")),
        ("response_1", "response_2"),
        "preference_strength",
    )


def helpsteer2_ratings(row: Row) -> Parsed:
    """HelpSteer2's ratings: one response and its helpfulness; the other ratings are metadata."""
    helpfulness = values.optional_number(row, "helpfulness")
    return Parsed(
        prompt=helpsteer_turns(values.text(row, "prompt")),
        responses=(answered(values.text(row, "response")),),
        grades=() if helpfulness is None else (helpfulness,),
    )


def helpsteer3(row: Row) -> Parsed:
    """HelpSteer3's preferences: messages, two responses, and the sign of HelpSteer2."""
    context = values.messages(row, "context")
    return _by_sign(row, context, ("response1", "response2"), "overall_preference")


def nectar(row: Row) -> Parsed:
    """Nectar: a dialogue and its answers, rank 1 the best."""
    dialogue = values.text(row, "prompt")
    turns = hh_turns(dialogue) if HUMAN in dialogue else asked(dialogue)
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    answers = values.objects(row, "answers")
    return _ranked(
        turns, answers, tuple(_answer(item, index) for index, item in enumerate(answers))
    )


def nemo(row: Row) -> Parsed:
    """NeMo-RL: a context and its completions, the lowest rank the best."""
    completions = values.objects(row, "completions")
    return _ranked(
        values.messages(row, "context"),
        completions,
        tuple(_inner_messages(item, index) for index, item in enumerate(completions)),
    )


def pku_saferlhf(row: Row) -> Parsed:
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


def shp(row: Row) -> Parsed:
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


def webgpt(row: Row) -> Parsed:
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


def arena(row: Row) -> Parsed:
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


def _by_sign(row: Row, prompt: Messages, responses: tuple[str, str], column: str) -> Parsed:
    """Two responses and a preference from -3 (the first is much better) to 3; 0 is a tie."""
    preference = values.optional_number(row, column)
    first, second = (answered(values.text(row, name)) for name in responses)
    if preference is None:
        return Parsed(prompt=prompt, responses=(first, second), grades=())
    return by_lead(prompt, first, second, -preference, strength=abs(preference))


def _ranked(
    prompt: Messages, items: list[dict[str, object]], responses: tuple[Messages, ...]
) -> Parsed:
    """Responses with a rank each, the lowest the best."""
    ranks = [values.number(item, "rank") for item in items]
    return Parsed(prompt=prompt, responses=responses, grades=tuple(0.0 - rank for rank in ranks))


def _answer(item: Row, index: int) -> Messages:
    return answered(values.inner_text(item, "answer", f"answers[{index}]"))


def _inner_messages(item: Row, index: int) -> Messages:
    try:
        return values.messages(item, "completion")
    except DataError as error:
        raise DataError(f"completions[{index}]: {error}") from error


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
)
"""Rows of :data:`plaudit.data.formats.readers.READERS`."""
