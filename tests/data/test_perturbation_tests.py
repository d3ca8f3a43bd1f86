from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from plaudit.data.perturb.run import build_perturbation_tests, perturb
from plaudit.data.perturb.table import PERTURBATIONS
from plaudit.data.perturb.text import NOT_LATIN, language_of_answer, make_context
from plaudit.evaluation.analysis.perturbations import (
    Budget,
    Perturbed,
    Probed,
    Scores,
    perturbation_notes,
    perturbation_row,
    probe,
    summarise_tests,
)
from plaudit.evaluation.metrics.pairwise import wilson
from plaudit.types import Comparison, Message, Outputs, Skipped, TokenTree
from tests.data.test_perturb import of_kind

RICH = """# How the parser works

It does not read "all" of the file. Don't rely on it!
This paragraph has a second line that goes on and on because it is long and nobody broke it.

- One `a - b` point
- Two **bold** points

1. First of them
2. Second of them

```python
# keep "this" as it is. Really.
- 1. and this
```
It's the end. Or is it?"""

EXPECTED = {
    "double_spaces": "file.  Don't",
    "final_newline": "is it?\n",
    "blank_lines": "works\n\n\nIt",
    "wrapped_lines": "is long\nand",
    "list_order": "**bold** points\n- One",
    "bullet_style": "* One `a - b` point",
    "number_style": "1) First",
    "heading_case": "# How The Parser Works",
    "bold_style": "Two __bold__ points",
    "quote_style": "“all” of the file. Don’t",
    "contractions": "Do not rely",
}


@pytest.mark.parametrize("name", of_kind("meaning_preserving"))
def test_a_rewrite_differs_and_leaves_code_alone(name):
    rewrite = PERTURBATIONS[name].apply
    new = rewrite(RICH, Random(0), make_context([]))
    assert new != RICH
    assert EXPECTED[name] in new
    code = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
    assert code.findall(new) == code.findall(RICH)
    # The words are the same in the same order, but for what the rewrite is about.
    if name not in ("contractions", "heading_case", "quote_style", "list_order"):
        assert re.findall(r"[A-Za-z']+", new) == re.findall(r"[A-Za-z']+", RICH)


@pytest.mark.parametrize("name", of_kind("meaning_preserving"))
@pytest.mark.parametrize("text", ["plain", "x" * 50_000, "\ud800 .", "```\n- a\n\n# b"])
def test_a_rewrite_differs_or_is_none(name, text):
    new = PERTURBATIONS[name].apply(text, Random(0), make_context([]))
    assert new is None or new != text
    assert PERTURBATIONS[name].apply("", Random(0), make_context([])) is None


@pytest.mark.parametrize("name", ["bullet_style", "number_style", "quote_style", "contractions"])
def test_some_rewrites_go_both_ways(name):
    there = PERTURBATIONS[name].apply(RICH, Random(0), make_context([]))
    assert PERTURBATIONS[name].apply(there, Random(0), make_context([])) is not None


def comparison(number, *, chat=True, grades=(0.0, 1.0), good=RICH):
    def turn(role, text):
        return (Message(role=role, content=text),) if chat else text

    return Comparison(
        id=str(number),
        prompt=turn("user", f"Question {number}?"),
        responses=(turn("assistant", " bad"), turn("assistant", good)),
        grades=grades,
        group=f"g{number % 50}",
        source="s",
        where=f"s:{number}",
    )


@pytest.mark.parametrize("chat", [True, False])
def test_probes_hold_best_worst_and_every_operator(chat):
    built = build_perturbation_tests([comparison(n, chat=chat) for n in range(3)], seed=1)
    assert len(built.tests) == 3
    one = built.tests[0]
    best, worst = one.comparison.responses[: one.unperturbed]
    text = [r if isinstance(r, str) else r[0].content for r in one.comparison.responses]
    assert (text[0], text[1]) == (RICH, " bad")
    assert len(text) == one.unperturbed + len(one.perturbations)
    assert {name for kind, name in one.perturbations if kind == "reward_hacking"} == set(
        of_kind("reward_hacking")
    )
    known = {
        kind: of_kind(kind) for kind in ("degradation", "meaning_preserving", "reward_hacking")
    }
    assert all(name in known[kind] for kind, name in one.perturbations)
    assert all(altered != RICH for altered in text[one.unperturbed :])
    for one in built.tests:
        applied = [name for _, name in one.perturbations]
        assert one.language == "en"
        assert sorted([*applied, *one.not_applied, *one.not_for_language]) == sorted(PERTURBATIONS)
    del best, worst


def test_a_short_answer_is_in_the_language_of_its_own_prompt():
    prompts = ("Is the meeting tomorrow still on?", "Findet die Besprechung morgen noch statt?")
    rows = [
        replace(comparison(n, chat=False, good="OK."), prompt=prompt)
        for n, prompt in enumerate(prompts)
    ]
    for ordered in (rows, rows[::-1]):
        built = build_perturbation_tests(ordered)
        assert {one.comparison.prompt: one.language for one in built.tests} == dict(
            zip(prompts, ("en", "de"), strict=True)
        )
        assert perturb(ordered, [], 0).languages == {"en": 1, "de": 1}


def test_a_sample_is_one_per_prompt_whatever_the_order():
    rows = [comparison(n) for n in range(200)]
    first = build_perturbation_tests(iter(rows), most=20, seed=3)
    groups = [one.comparison.group for one in first.tests]
    assert len(set(groups)) == 20
    later = build_perturbation_tests(reversed(rows), most=20, seed=3)
    assert [one.comparison.group for one in later.tests] == groups
    other = build_perturbation_tests(rows, most=20, seed=4)
    assert {one.comparison.group for one in other.tests} != set(groups)
    assert len(build_perturbation_tests(rows, most=1000, seed=3).tests) == 50
    assert build_perturbation_tests(rows, most=0, seed=3).tests == ()


def test_responses_without_text_are_counted():
    built = build_perturbation_tests([comparison(0, good=None), comparison(1, good="  ")])
    assert (built.tests, built.skipped["no text"]) == ((), 2)


def test_a_response_without_a_worse_one_stands_once_in_its_test():
    alone = replace(comparison(0), responses=comparison(0).responses[1:], grades=(4.0,), rated=True)
    for row in (alone, comparison(1, grades=(1.0, 1.0), good=" bad, too. It is not true.")):
        (one,) = build_perturbation_tests([row]).tests
        assert (one.ordered, one.unperturbed) == (False, 1)
        texts = [plain_text(response) for response in one.comparison.responses]
        assert texts.count(plain_text(row.responses[0])) == 1
        assert len(texts) == 1 + len(one.perturbations)
        probed = run_probe([row])
        assert probed.conversations == 1 + len(probed.perturbed)
        assert {each.other for each in probed.perturbed} == {None}
        assert {each.original for each in probed.perturbed} == {-float(len(texts[0]) + 1)}


def test_single_responses_of_low_rating_are_skipped_and_counted():
    def single(number, rating):
        row = comparison(number)
        return replace(row, responses=row.responses[1:], grades=(rating,), rated=True)

    built = build_perturbation_tests([single(n, float(n % 5)) for n in range(10)])
    assert sorted(one.comparison.id for one in built.tests) == ["2", "3", "4", "7", "8", "9"]
    assert built.skipped == {"low rating": 4}
    same = build_perturbation_tests([single(n, 1.0) for n in range(4)])
    assert (len(same.tests), same.skipped) == (4, {})


def test_responses_without_grades_are_not_drawn():
    attributes = {"clear": (1.0, 2.0)}
    unknown = replace(comparison(0, grades=()), rated=True, attributes=attributes)
    single = replace(unknown, responses=unknown.responses[1:], attributes={"clear": (2.0,)})
    built = build_perturbation_tests([unknown, single, comparison(50), comparison(1)])
    assert {one.comparison.id for one in built.tests} == {"50", "1"}
    assert built.skipped == {}
    (one,) = build_perturbation_tests([replace(comparison(0), attributes=attributes)]).tests
    assert one.comparison.attributes == {}


def test_grades_of_several_responses_skip_none():
    # The best of three ranks is no better than the best of two.
    rows = [
        replace(
            comparison(n),
            responses=comparison(n).responses * (1 + n % 2),
            grades=tuple(float(grade) for grade in range(2 * (1 + n % 2))),
            rated=True,
        )
        for n in range(6)
    ]
    built = build_perturbation_tests(rows)
    assert (len(built.tests), built.skipped) == (6, {})


def plain_text(turns):
    """The text of the first turn."""
    (first, *_) = turns
    return first.content


def encode_up_to(limit):
    """Trees of one token per character; a comparison with a longer response is refused."""

    def encode(comparisons):
        outcomes: list[TokenTree | Skipped] = []
        for index, one in enumerate(comparisons):
            lengths = [len(response[0].content) + 1 for response in one.responses]
            if max(lengths) > limit:
                outcomes.append(Skipped(index=index, reason="over_length", detail="long"))
            else:
                branches = tuple(np.zeros(length, np.int32) for length in lengths)
                outcomes.append(
                    TokenTree(index=index, prefix=np.zeros(2, np.int32), branches=branches)
                )
        return outcomes

    return encode


def shorter_is_better(trees):
    return [Scores(np.array([-float(len(b)) for b in tree.branches])) for tree in trees]


def run_probe(rows, *, limit=10**6, most=4, packed=True, budget=None):
    encode = encode_up_to(limit)
    return probe(rows, encode, shorter_is_better, most=most, seed=0, packed=packed, budget=budget)


def test_every_reward_stands_with_its_alteration():
    rows = [comparison(n) for n in range(10)]
    probed = run_probe(rows, most=10)
    assert (probed.responses, probed.languages, probed.not_for_language) == (10, {"en": 10}, {})
    facts = summarise_tests(probed, reward_std=2.0)
    found = {row.perturbation: row for row in facts.rows}
    assert set(found) == set(PERTURBATIONS) - {
        name.split()[0] for name, count in probed.skipped.items() if count == 10
    }
    assert found["empty"].rose == 1.0
    assert found["empty"].shift == pytest.approx(len(RICH) / 2.0)
    assert found["sure"].fell == 1.0
    assert found["repetition"].shift == pytest.approx(-(2 * len(RICH) + 4) / 2.0)
    assert found["verbose_filler"].fell_ci95 == pytest.approx(wilson(10, 10))
    assert found["double_spaces"].flipped == 0.0
    assert [row.kind for row in facts.rows] == sorted(
        [row.kind for row in facts.rows],
        key=["degradation", "meaning_preserving", "reward_hacking"].index,
    )


def test_what_is_too_long_is_left_out_and_counted():
    rows = [comparison(n) for n in range(4)]
    probed = run_probe(rows, limit=len(RICH) + 20)
    names = {one.name for one in probed.perturbed}
    assert probed.responses == 4
    assert "repetition" not in names
    assert probed.skipped["repetition over_length"] == 4
    assert "sure" in names
    none = run_probe(rows, limit=3)
    assert (none.responses, list(none.perturbed)) == (0, [])
    assert summarise_tests(none, reward_std=1.0).rows == ()


def test_a_budget_bounds_the_tokens_and_says_what_it_left_out():
    rows = [comparison(n) for n in range(8)]
    whole = run_probe(rows, most=6)
    assert (whole.responses, whole.over_budget, whole.budget) == (6, 0, None)
    (sentence,) = perturbation_notes(whole)
    assert sentence == (
        f"Perturbation tests scored 6 good responses and {len(whole.perturbed)} perturbations of "
        f"them: {whole.conversations} conversations of {whole.tokens:,} tokens."
    )
    assert whole.conversations == len(whole.perturbed) + 2 * 6
    budget = Budget(share=0.25, run_tokens=2 * whole.tokens)
    half = run_probe(rows, most=6, budget=budget)
    assert 0 < half.tokens <= 0.25 * budget.run_tokens
    assert (half.responses + half.over_budget, half.responses < 4) == (6, True)
    # The first responses drawn, whatever their length: the short ones must not be preferred.
    assert [a for a in whole.perturbed if a.name == "sure"][: half.responses] == [
        a for a in half.perturbed if a.name == "sure"
    ]
    cost, left_out = perturbation_notes(half)
    assert cost.endswith(f"tokens, {half.tokens / budget.run_tokens:.1%} of the training tokens.")
    assert left_out == (
        f"{half.over_budget} further responses would have exceeded 25% of the training tokens "
        "(evaluate.perturbation_share)."
    )
    # Without packing a prompt is computed for every response.
    separate = run_probe(rows, most=6, packed=False)
    assert separate.tokens == whole.tokens + 2 * (whole.conversations - 6)
    none = run_probe(rows, most=6, budget=Budget(share=0.25, run_tokens=100))
    assert (none.responses, none.over_budget, none.skipped) == (0, 6, {})
    (sentence,) = perturbation_notes(none)
    assert sentence == (
        "Perturbation tests were not run: a single response with its perturbations needs more than "
        "25% of the training tokens (evaluate.perturbation_share)."
    )


GERMAN = (
    "Das Verfahren ist nicht schwer zu verstehen, und es dauert nur fünf Minuten. Danach liest man "
    "die Datei und schließt sie wieder.\n\n- Erst öffnen\n- Dann lesen\n\nMehr ist es nicht!"
)
CHINESE = "这个方法并不难理解，只需要5分钟。之后读取文件，再把它关闭。没有更多的步骤了！"


def test_an_operator_for_english_skips_other_languages_and_is_counted():
    texts = [RICH, GERMAN, CHINESE, "Wer früh aufsteht, hat mehr vom Tag und ist munter.", "42"]
    rows = [comparison(n, good=text) for n, text in enumerate(texts)]
    built = {one.comparison.id: one for one in build_perturbation_tests(rows, seed=1).tests}
    english = {name for name, operator in PERTURBATIONS.items() if operator.languages}
    assert {"refuse", "reversed_meaning", "contractions", "verbose_filler"} <= english
    assert {"truncation", "other_text", "echo", "final_newline", "other_language"}.isdisjoint(
        english
    )
    for number, language in enumerate(["en", "de", "zh", "de", None]):
        one = built[str(number)]
        applied = {name for _, name in one.perturbations}
        assert one.language == language
        assert set(one.not_for_language) == (english if language in ("de", "zh") else set())
        assert applied.isdisjoint(one.not_for_language)
        assert {"truncation", "empty", "echo"} & applied
    # The answer to another question is in the same language, and no German stands for German.
    german = built["1"]
    new = {
        name: german.comparison.responses[2 + k] for k, (_, name) in enumerate(german.perturbations)
    }
    assert plain_text(new["other_text"]) in texts[3:]
    assert "Es kommt immer" not in plain_text(new["other_language"])
    probed = run_probe(rows, most=5)
    assert probed.languages == {"en": 1, "de": 2, "zh": 1, "unknown": 1}
    assert probed.not_for_language == dict.fromkeys(english, 3)
    facts = summarise_tests(probed, reward_std=1.0)
    assert (facts.languages, facts.not_for_language) == (
        probed.languages,
        probed.not_for_language,
    )
    note = list(perturbation_notes(probed))[-1]
    assert note == (
        f"{len(english)} perturbations for English were skipped on responses in other languages "
        "(responses by language: de 2, en 1, unknown 1, zh 1)."
    )


@pytest.mark.parametrize(
    ("text", "prompt", "language"),
    [
        ("Close the socket after it was read.", "", "en"),
        (GERMAN, "", "de"),
        ("Ja, das stimmt.", "", "de"),
        ("はい", "", "ja"),
        ("42", "", None),
        ("def f(x):\n    return x + 1", "", None),
        # Too short to tell: the question tells. Fenced code tells nothing of the text around it.
        ("Nein.", "Ist das Verfahren schwer zu verstehen?", "de"),
        ("Yes.", "Is the method hard to understand for a beginner?", "en"),
        (
            "Das macht die Funktion hier:\n```py\n# Read the whole file and close it again.\n```",
            "",
            "de",
        ),
        (
            "```py\n# Read the whole file and then close it again.\nf()\n```",
            "Wie liest man eine Datei und schließt sie danach?",
            "de",
        ),
        ("\ud800", "\ud800", None),
        # No language is sure, but English operators have nothing to do with these.
        ("1. 12\n2. 13", "列出数字", NOT_LATIN),
        ("42", "多少？", NOT_LATIN),
    ],
)
def test_the_language_of_an_answer(text, prompt, language):
    assert language_of_answer(text, prompt) == language


def test_the_spread_of_an_ensemble_stands_with_its_perturbation():
    """One head finds a word worth 1, the other 3: their spread is that of the number of words."""
    outputs = Outputs(names=("a", "b"), weights=(0.5, 0.5), offsets=(0.0, 0.0), ensemble=True)

    def two_heads(trees):
        heads = [np.array([[len(b), 3.0 * len(b)] for b in tree.branches]) for tree in trees]
        return [Scores.of(outputs_KO, outputs.rewards(outputs_KO), outputs) for outputs_KO in heads]

    rows = [comparison(n) for n in range(3)]
    probed = probe(rows, encode_up_to(10**6), two_heads, most=3, seed=0, packed=True)
    for one in probed.perturbed:
        words = (one.perturbed - one.original) / 2
        assert one.spread_change == pytest.approx(np.sqrt(2) * words)
    tests = summarise_tests(probed, reward_std=1.0)
    assert all(row.spread_rose == row.rose for row in tests.rows)
    assert all(row.spread_rose_ci95 == row.rose_ci95 for row in tests.rows)
    assert tests.kinds["degradation"].spread_rose == tests.kinds["degradation"].rose
    named = replace(outputs, ensemble=False)
    assert Scores.of(np.ones((2, 2)), np.ones(2), named).spreads_K is None
    plain = summarise_tests(run_probe(rows), reward_std=1.0)
    assert plain.rows[0].spread_rose is None


def test_rates_and_flips_by_hand():
    rewards = [(2, 1, 0), (2, 1, 1.5), (2, 1, 3), (1, 2, 1)]
    altered = [
        Perturbed(kind="degradation", name="x", original=a, other=b, perturbed=c)
        for a, b, c in rewards
    ]
    row = perturbation_row("degradation", "x", altered, reward_std=0.5)
    assert (row.fell, row.rose, row.unchanged) == (0.5, 0.25, 1)
    assert row.flipped == 0.25
    assert row.shift == pytest.approx(np.mean([-4, -1, 2, 0]))
    assert row.shift_size == pytest.approx(7 / 4)
    constant = summarise_tests(
        Probed(perturbed=altered, responses=4, skipped={}, seed=0), reward_std=0.0
    )
    assert np.isnan(constant.rows[0].shift)
