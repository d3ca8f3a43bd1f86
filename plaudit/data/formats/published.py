"""Readers of preference sets and benchmarks as they were published.

Benchmarks' rows are read as pairs here, to train or evaluate on them like on any other data; their
texts are read as turns, because they are questions and answers of chats. Their scores by their own
rules are suites of ``plaudit eval``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Final

from plaudit.data.formats import values
from plaudit.data.formats.records import (
    Messages,
    ParsedRow,
    assistant_turn,
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
HELPSTEER_RATINGS: Final = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_ROLES: Final = {"Human": "user", "User": "user", "Assistant": "assistant"}


def hh_turns(text: str) -> Messages:
    """The turns of a dialogue. Turns of one role in a row become one: templates refuse them."""
    _, *pieces = _HH_TURN.split(text)
    turns = zip(pieces[::2], map(str.strip, pieces[1::2]), strict=True)
    return tuple(
        Message(role=_ROLES[speaker], content="\n\n".join(words for _, words in group if words))
        for speaker, group in groupby(turns, itemgetter(0))
    )


def helpsteer_turns(text: str) -> Messages:
    """A HelpSteer2 prompt: its first words are the user's, ``<extra_id_1>`` opens later turns."""
    first, *pieces = _HELPSTEER_TURN.split(text)
    later = zip(pieces[::2], pieces[1::2], strict=True)
    turns = (Message(role=_ROLES[speaker], content=words) for speaker, words in later)
    return (*user_turn(first), *turns)


# --- preference sets ----------------------------------------------------------------------------


def ultrafeedback(row: Row) -> ParsedRow:
    """UltraFeedback before binarising: an instruction and completions with an overall score.

    The ratings of their ``annotations`` (instruction_following, honesty, …) are attributes.
    """
    read_score = partial(values.optional_number, column="overall_score")
    scores = values.each(row, "completions", read_score)
    known = tuple(score for score in scores if score is not None)
    return ParsedRow(
        prompt=user_turn(values.text(row, "instruction")),
        responses=_answers(row, "completions", "response"),
        grades=known if len(known) == len(scores) else (),
        rated=True,
        strength=abs(known[0] - known[1]) if len(known) == len(scores) == 2 else None,
        attributes=_attributes(values.each(row, "completions", _ultrafeedback_ratings)),
    )


def _ultrafeedback_ratings(completion: Row) -> dict[str, float | None]:
    """The rating of each aspect under ``annotations``: a number as text, or ``N/A``."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        return {}
    return {
        values.attribute_name(aspect): _number_in(annotation.get("Rating"))
        for aspect, annotation in annotations.items()
        if isinstance(annotation, Mapping)
    }


def _number_in(value: object) -> float | None:
    """A number, or the one that a text is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _attributes(
    of_responses: Sequence[Mapping[str, float | None]],
) -> dict[str, tuple[float | None, ...]]:
    """The ratings of each response as one tuple per attribute."""
    names = dict.fromkeys(name for ratings in of_responses for name in ratings)
    return {name: tuple(ratings.get(name) for ratings in of_responses) for name in names}


def helpsteer2(row: Row) -> ParsedRow:
    """HelpSteer2's preferences: below 0 the first response is better, above 0 the second."""
    return _by_sign(
        row,
        helpsteer_turns(values.text(row, "prompt")),
        ("response_1", "response_2"),
        "preference_strength",
    )


def helpsteer2_ratings(row: Row) -> ParsedRow:
    """HelpSteer's and HelpSteer2's ratings: one response and its helpfulness.

    All five ratings are attributes.
    """
    ratings = {name: values.optional_number(row, name) for name in HELPSTEER_RATINGS}
    helpfulness = ratings["helpfulness"]
    return ParsedRow(
        prompt=helpsteer_turns(values.text(row, "prompt")),
        responses=(assistant_turn(values.text(row, "response")),),
        grades=() if helpfulness is None else (helpfulness,),
        rated=True,
        attributes=_attributes([ratings]),
    )


def helpsteer3(row: Row) -> ParsedRow:
    """HelpSteer3's preferences: messages, two responses, and the sign of HelpSteer2.

    Of the annotators, one without a preference counts half for either response.
    """
    context = values.messages(row, "context")
    parsed = _by_sign(row, context, ("response1", "response2"), "overall_preference")
    if not row.get("individual_preference") or len(set(parsed.grades)) < 2:
        return parsed
    read_score = partial(values.optional_number, column="score")
    scores = [s for s in values.each(row, "individual_preference", read_score) if s is not None]
    votes = [0.5 if score == 0 else float(score < 0) for score in scores]
    for_first = sum(votes) / len(votes) if votes else None
    if for_first is None or parsed.grades[0]:
        return replace(parsed, agreement=for_first)
    return replace(parsed, agreement=1.0 - for_first)


def nectar(row: Row) -> ParsedRow:
    """Nectar: a dialogue and its answers, rank 1 the best."""
    dialogue = values.text(row, "prompt")
    turns = hh_turns(dialogue) if HUMAN in dialogue else user_turn(dialogue)
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    return _ranked(row, "answers", turns, _answers(row, "answers", "answer"))


def nemo(row: Row) -> ParsedRow:
    """NeMo-RL: a context and its completions, the lowest rank the best."""
    read_turns = partial(values.messages, column="completion")
    responses = values.each(row, "completions", read_turns)
    return _ranked(row, "completions", values.messages(row, "context"), responses)


def pku_saferlhf(row: Row) -> ParsedRow:
    """PKU-SafeRLHF: two responses and the number of the more helpful one."""
    prompt = user_turn(values.text(row, "prompt"))
    lead = _lead(row, "better_response_id", (0, 1), "the number of the preferred response")
    return pair_by_lead(row, prompt, ("response_0", "response_1"), lead)


def shp(row: Row) -> ParsedRow:
    """SHP: a post and two comments; label 1 means that A is preferred, 0 that B is."""
    prompt = user_turn(values.text(row, "history"))
    lead = _lead(row, "labels", (1, 0), "1 where A is preferred and 0 where B is")
    return pair_by_lead(row, prompt, ("human_ref_A", "human_ref_B"), lead)


def webgpt(row: Row) -> ParsedRow:
    """WebGPT comparisons: a question and two answers with a score each."""
    lead = values.number(row, "score_0") - values.number(row, "score_1")
    asks = values.value_of(row, "question")
    at = (asks, "full_text") if isinstance(asks, dict) else (row, "question")
    prompt = user_turn(values.text(*at))
    return pair_by_lead(row, prompt, ("answer_0", "answer_1"), lead, strength=abs(lead))


def arena(row: Row) -> ParsedRow:
    """Chatbot Arena: two conversations and the winner."""
    winner = values.text(row, "winner")
    leads = {"model_a": 1.0, "model_b": -1.0, "tie": 0.0, "tie (bothbad)": 0.0, "both_bad": 0.0}
    if winner not in leads:
        raise DataError(f"unknown winner; expected one of {', '.join(leads)}.")
    whole = pair_of_conversations(
        values.messages(row, "conversation_a"), values.messages(row, "conversation_b")
    )
    lead = leads[winner]
    return replace(whole, grades=(float(lead > 0), float(lead < 0)))


def _by_sign(row: Row, prompt: Messages, responses: tuple[str, str], column: str) -> ParsedRow:
    """Two responses and a preference from -3 (the first is much better) to 3; 0 is a tie."""
    preference = values.optional_number(row, column)
    if preference is None:
        return replace(pair_by_lead(row, prompt, responses, 0), grades=())
    return pair_by_lead(row, prompt, responses, -preference, strength=abs(preference))


def _lead(row: Row, column: str, numbers: tuple[int, int], expected: str) -> int:
    """1 where the column holds the first of two numbers, -1 where it holds the second."""
    number = values.number(row, column)
    if number not in numbers:
        raise DataError(
            f"{column} is neither {min(numbers)} nor {max(numbers)}; expected {expected}."
        )
    return 1 if number == numbers[0] else -1


def pair_by_lead(
    row: Row,
    prompt: Messages,
    columns: tuple[str, str],
    lead: float,
    *,
    strength: float | None = None,
) -> ParsedRow:
    """The texts of two columns. A ``lead`` above 0 means the first is better, 0 a tie."""
    return ParsedRow(
        prompt=prompt,
        responses=tuple(assistant_turn(values.text(row, column)) for column in columns),
        grades=(float(lead > 0), float(lead < 0)),
        strength=strength,
        metadata={} if strength is None else {"strength": strength},
    )


def _ranked(row: Row, column: str, prompt: Messages, responses: tuple[Messages, ...]) -> ParsedRow:
    """Responses with a rank each, the lowest the best."""
    ranks = values.each(row, column, partial(values.number, column="rank"))
    return ParsedRow(prompt=prompt, responses=responses, grades=tuple(0.0 - rank for rank in ranks))


def _answers(row: Row, column: str, key: str) -> tuple[Messages, ...]:
    """The text under ``key`` of each object in a column, as an assistant turn."""
    return tuple(map(assistant_turn, values.each(row, column, partial(values.text, column=key))))


# --- benchmarks ---------------------------------------------------------------------------------

_REWARDBENCH: Final = frozenset({"subset", "chosen_model", "rejected_model"})


def is_rewardbench(row: Row) -> bool:
    """Whether a row of prompt, chosen and rejected says what RewardBench's rows say."""
    return row.keys() >= _REWARDBENCH


def rewardbench(row: Row) -> ParsedRow:
    """RewardBench: a question, the better and the worse answer."""
    prompt = user_turn(values.text(row, "prompt"))
    return pair_by_lead(row, prompt, ("chosen", "rejected"), 1)


def answer_lists(row: Row) -> ParsedRow:
    """RewardBench 2 and RM-Bench: a question, right answers (grade 1) and wrong ones (grade 0)."""
    chosen, rejected = values.texts(row, "chosen"), values.texts(row, "rejected")
    return ParsedRow(
        prompt=user_turn(values.text(row, "prompt")),
        responses=tuple(assistant_turn(text) for text in chosen + rejected),
        grades=(1.0,) * len(chosen) + (0.0,) * len(rejected),
        rated=True,
    )


def llmbar(row: Row) -> ParsedRow:
    """LLMBar: two outputs for an input, and the number (1 or 2) of the better one."""
    prompt = user_turn(values.text(row, "input"))
    lead = _lead(row, "label", (1, 2), "the number of the preferred output")
    return pair_by_lead(row, prompt, ("output_1", "output_2"), lead)


_text = partial(values.all_of, values.is_text)
_any = partial(values.all_of, values.anything)
_messages = partial(values.all_of, values.is_messages)

READERS: Final = (
    reader_of(ultrafeedback, _text("instruction") | _messages("completions")),
    reader_of(
        helpsteer2, _text("prompt", "response_1", "response_2") | _any("preference_strength")
    ),
    reader_of(
        helpsteer2_ratings,
        _text("prompt", "response") | _any("helpfulness"),
        optional=HELPSTEER_RATINGS,
    ),
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
        {"question": values.typed(str, dict)}
        | _text("answer_0", "answer_1")
        | _any("score_0", "score_1"),
    ),
    reader_of(arena, _messages("conversation_a", "conversation_b") | _any("winner")),
    reader_of(rewardbench, _text("prompt", "chosen", "rejected"), when=is_rewardbench),
    reader_of(answer_lists, _text("prompt") | values.all_of(values.is_texts, "chosen", "rejected")),
    reader_of(llmbar, _text("input", "output_1", "output_2") | _any("label")),
)
"""Rows of :data:`plaudit.data.formats.readers.READERS`."""
