"""Texts that stand in place of an answer: another question's answer, another language."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from random import Random
from typing import Final

from plaudit.data.perturb.text import Context, alike, different


def other_text(text: str, generator: Random, context: Context) -> str | None:
    """A right answer to another question, of about the same length."""
    others = context.others
    at = bisect_left(others, (len(text), text), key=lambda other: (len(other), other))
    # Forty neighbours by length: near enough to hide the length, enough of them to vary.
    near = others[max(at - 20, 0) : at + 20]
    candidates = [other for other in near if other not in context.own and not alike(other, text)]
    return different(generator.choice(candidates), text) if candidates else None


def other_language(text: str, generator: Random, context: Context) -> str | None:
    """Two to four sentences that say nothing, in a language that is not the text's.

    German, French, Spanish, Italian, Portuguese and Dutch; the sentences are fixed.
    """
    words = [word.strip(".,;:!?").lower() for word in text.split()]
    if not words:
        return None
    foreign = [
        language
        for language in _LANGUAGES
        if language.code != context.language
        and sum(word in language.common for word in words) <= 0.15 * len(words)
    ]
    if not foreign:
        return None
    language = generator.choice(foreign)
    said = generator.sample(language.sentences, generator.randint(2, len(language.sentences)))
    return different(" ".join(said), text)


@dataclass(frozen=True, slots=True)
class _Language:
    """Words by which a text is known to be of the language, and sentences that say nothing."""

    code: str
    common: frozenset[str]
    sentences: tuple[str, ...]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LANGUAGES: Final = (
    _Language(
        "de",
        _words("der die das und ist nicht ein eine zu den mit von für auf sich wird"),
        (
            "Dazu lässt sich im Allgemeinen Folgendes sagen.",
            "Es kommt immer auf den Zusammenhang an.",
            "Man sollte die Einzelheiten in jedem Fall genau prüfen.",
            "Weitere Auskunft gibt die Anleitung.",
        ),
    ),
    _Language(
        "fr",
        _words("le la les des et est une un que pour dans pas sur avec du ce"),
        (
            "On peut dire en général ce qui suit.",
            "Tout dépend du contexte.",
            "Il convient de vérifier les détails dans chaque cas.",
            "Vous trouverez plus de renseignements dans le manuel.",
        ),
    ),
    _Language(
        "es",
        _words("el los las y es una un que para por con no del se lo"),
        (
            "En general se puede decir lo siguiente.",
            "Todo depende del contexto.",
            "Conviene comprobar los detalles en cada caso.",
            "Encontrará más información en el manual.",
        ),
    ),
    _Language(
        "it",
        _words("il lo gli e è una un che per con non del di si sono"),
        (
            "In generale si può dire quanto segue.",
            "Tutto dipende dal contesto.",
            "Conviene verificare i dettagli caso per caso.",
            "Ulteriori informazioni si trovano nel manuale.",
        ),
    ),
    _Language(
        "pt",
        _words("o os as e é uma um que para com não do da se em"),
        (
            "Em geral, pode dizer-se o seguinte.",
            "Tudo depende do contexto.",
            "Convém verificar os pormenores em cada caso.",
            "O manual contém mais informações.",
        ),
    ),
    _Language(
        "nl",
        _words("de het een en van is niet dat op te voor met zijn er wordt"),
        (
            "In het algemeen kan het volgende worden gezegd.",
            "Het hangt altijd van de context af.",
            "Controleer in elk geval de details.",
            "Meer informatie staat in de handleiding.",
        ),
    ),
)
