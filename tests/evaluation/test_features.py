from __future__ import annotations

import math

import pytest

from plaudit.evaluation.analysis.features import (
    FEATURES_DTYPE,
    RESPONSE_FEATURES,
    features_column,
    measure_responses,
    script,
)

MARKDOWN = """# Title

Some **bold** and __more__, not 2 * 3 ** 4 or a__b__c.

- one
* two
  + three
10) four
3.5 is no item

```python
# no heading
- no item
**no bold**
```
"""


@pytest.mark.parametrize(
    ("feature", "response", "expected"),
    [
        ("characters", "äb\n", 3),
        ("list_items", MARKDOWN, 4),
        ("headings", MARKDOWN, 1),
        ("bold", MARKDOWN, 2),
        ("code_blocks", MARKDOWN, 1),
        ("code_blocks", "```\nnever closed", 1),
        ("headings", "#hashtag\n####### seven", 0),
        ("refusal", "I’m sorry, but I can't help with that.", 1),
        ("refusal", "As an AI, I cannot have opinions.", 1),
        ("refusal", "I cannot recommend this film enough!", 0),
        ("refusal", "x" * 300 + " I cannot help", 0),
        ("prompt_words", "The sand is made of rock", 4 / 6),
        ("prompt_words_place", "rock becomes sand", 1.0),
        ("prompt_words_place", "sand", math.nan),
        ("prompt_words", "", math.nan),
        ("other_script", "Это песок", 1),
        ("other_script", "Sand", 0),
        ("other_script", "123", math.nan),
    ],
)
def test_counts_by_hand(feature, response, expected):
    found = RESPONSE_FEATURES[feature](response, "How is the sand made?")
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", "latin"),
        ("ＨＥＬＬＯ", "latin"),
        ("привет hi", "cyrillic"),
        ("مرحبا", "arabic"),
        ("你好", "cjk"),
        ("ありがとう", "hiragana"),
        ("안녕", "hangul"),
        ("नमस्ते", "devanagari"),
        ("42!", None),
        ("", None),
    ],
)
def test_scripts(text, expected):
    assert script(text) == expected


def test_every_feature_is_a_column():
    records = measure_responses(["a", MARKDOWN], "What?", turns=3, truncated=0)
    column = features_column({name: [one[name] for one in records] for name in records[0]}, 2)
    assert set(records[0]) == set(FEATURES_DTYPE.names)
    assert column["turns"].tolist() == [3, 3]
    assert column["prompt_script"].tolist() == ["latin", "latin"]
    missing = features_column({}, 1)
    assert missing["prompt_script"][0] == ""
    assert math.isnan(missing["characters"][0])


def test_long_lines_and_odd_characters_are_no_trouble():
    for text in ("*" * 50_000, "**a" * 20_000, "`" * 50_000, "\ud800" * 10, "- " * 25_000):
        for measure in RESPONSE_FEATURES.values():
            measure(text, text)
