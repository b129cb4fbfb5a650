"""English captions for emoji: the right article, countries as flags, plurals without an article."""

from __future__ import annotations

import re

# Words after one of these only qualify those before it: the head noun is on the left.
_PREPOSITIONS = frozenset(
    [
        "and",
        "at",
        "behind",
        "blowing",
        "for",
        "from",
        "holding",
        "in",
        "of",
        "on",
        "over",
        "savoring",
        "to",
        "with",
        "without",
    ]
)
_PEOPLE = frozenset(["adult", "baby", "boy", "child", "girl", "man", "person", "prince", "princess", "woman"])
_PLURAL_PEOPLE = frozenset(["children", "men", "people", "women"])
# Those that emoji names end in, not a complete list of English.
# fmt: off
_UNCOUNTABLE = frozenset([
    "bacon", "badminton", "baseball", "basketball", "biohazard", "bowling", "bread", "butter", "camping", "cooking",
    "coral", "corn", "cricket", "custard", "dna", "fire", "flatbread", "fog", "food", "fondue", "garlic", "hockey",
    "ice", "lacrosse", "litter", "luggage", "microbe", "milk", "money", "oden", "polish", "pong", "popcorn", "rice",
    "sake", "salad", "salt", "soap", "softball", "spaghetti", "sushi", "tennis", "thread", "volleyball", "water",
    "wood", "yarn", "zzz",
])
# fmt: on
# Singular nouns that end in s.
_SINGULAR_IN_S = ("ss", "us", "'s", "rhinoceros", "fleur-de-lis")
# Letters whose names begin with a vowel sound: "an SOS button".
_SPELT_WITH_AN = frozenset("AEFHILMNORSX")
_SAID_WITH_A = re.compile(r"(?:one\b|one-|once|uni|use|usu|euro|eucal|ewe|ufo)", re.IGNORECASE)
_SPOKEN_CAPITALS = frozenset({"NEW", "COOL", "FREE", "BACK", "TOP", "SOON", "UP!", "ON!", "END", "OK", "ZZZ"})


def words_of(short_name: str) -> str:
    """The words of an emoji short name.

    >>> words_of(":Trinidad_&_Tobago:")
    'Trinidad and Tobago'
    """
    return short_name.strip(":").replace("_", " ").replace("&", "and").replace("’", "'")


def phrase_of(words: str, *, country_flag: bool = False) -> str:
    """`words` in the form that follows "an emoji of": with an article where English needs one.

    >>> phrase_of("pineapple"), phrase_of("avocado"), phrase_of("grapes"), phrase_of("Japan", country_flag=True)
    ('a pineapple', 'an avocado', 'grapes', 'the flag of Japan')
    """
    if country_flag:
        return f"the flag of {words}"
    if not _takes_article(words):
        return words
    return f"{'an' if _starts_with_vowel_sound(words) else 'a'} {words}"


def caption(style: str, phrase: str) -> str:
    """The caption of one image.

    >>> caption("outlined", "a pineapple")
    'an outlined emoji of a pineapple'
    """
    return f"{'an' if _starts_with_vowel_sound(style) else 'a'} {style} emoji of {phrase}"


def _starts_with_vowel_sound(words: str) -> bool:
    first = words.split(maxsplit=1)[0]
    if first.isupper() and first not in _SPOKEN_CAPITALS:
        return first[0] in _SPELT_WITH_AN
    return first[0].lower() in "aeiou" and not _SAID_WITH_A.match(words)


def _takes_article(words: str) -> bool:
    tokens = words.split()
    if tokens[0].lower() in _PEOPLE:
        return True
    if tokens[0].lower() in _PLURAL_PEOPLE or words.endswith("o'clock") or words.endswith("-thirty"):
        return False
    if _is_proper_name(tokens):
        return False
    return not _is_plural_or_mass(_head(tokens))


def _head(tokens: list[str]) -> str:
    """The head noun, which decides number: "eyes" in "busy eyes with glasses"."""
    for position, token in enumerate(tokens):
        if position and token in _PREPOSITIONS:
            return tokens[position - 1].lower()
    return re.sub(r"\W+$", "", tokens[-1]).lower() or tokens[-1]


def _is_plural_or_mass(noun: str) -> bool:
    if noun in _UNCOUNTABLE:
        return True
    return len(noun) > 2 and noun.endswith("s") and not noun.endswith(_SINGULAR_IN_S)


def _is_proper_name(tokens: list[str]) -> bool:
    """Santa Claus, Aries, Statue of Liberty; not "Japanese castle", "ATM sign" or "T-Rex"."""
    named = [token for token in tokens if token not in _PREPOSITIONS]
    return all(token[0].isupper() and token[1:].rstrip(".").islower() for token in named)
