"""CaseOps: text in lower case with operators that mark capitals; lossless.

A word and its capitalised form then share their pieces. (The data of the challenge's record, PR
#1729, has the same operators.) Only ASCII letters change, so no letter changes its size in UTF-8.

* U+E001 (Title) and U+E003 (next): the following letter is a capital.
* U+E002 (CAPS): all following letters, up to the next operator or the end of the run of letters,
  are capitals.
* U+E004 (escape): the following operator is a character of the text.

Adjacent capitals are written with as few operators as possible:

* A single capital follows U+E001 where a run of letters begins ("The", "I"), else U+E003
  ("iPhone").
* Two or more capitals at the end of a run of letters follow one U+E002 ("NASA", "iOS").
* If lower-case letters follow, the last capital belongs to them and has its own U+E003
  ("HTMLParser" is CAPS "html", next "parser"); the capitals before it are written as if they ended
  the run, by the rule for one or for several.
"""

from __future__ import annotations

import re

TITLE, CAPS, NEXT, ESCAPE = OPERATORS = "\ue001\ue002\ue003\ue004"

_CAPITALS = re.compile("[A-Z\ue001-\ue004](?:(?<=[A-Z])[A-Z]+)?")
_OPERATED = re.compile(
    "\ue001[A-Za-z]?|\ue002[A-Za-z]*|\ue003[A-Za-z]?|\ue004[\ue001-\ue004]?"
)  # each alternative begins with one character, which makes the search fast


def to_caseops(text: str) -> str:
    """Return any text with operators for its capitals, by the rules of this module."""
    return _CAPITALS.sub(_with_operators, text)


def from_caseops(text: str) -> str:
    """Invert `to_caseops`; never fail.

    In text that `to_caseops` does not write, operators with nothing to act on (at the end, or
    before something that is not a letter) are dropped, and capitals stay as they are. The result of
    a prefix is a prefix of the result.
    """
    return _OPERATED.sub(_without_operator, text)


def _with_operators(found: re.Match[str]) -> str:
    capitals, text = found[0], found.string
    if capitals in OPERATORS:
        return ESCAPE + capitals
    before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
    letters = capitals.lower()
    first = NEXT if before.isascii() and before.isalpha() else TITLE
    if len(letters) == 1:
        return first + letters
    if not "a" <= after <= "z":
        return CAPS + letters
    return (CAPS if len(letters) > 2 else first) + letters[:-1] + NEXT + letters[-1]


def _without_operator(found: re.Match[str]) -> str:
    return found[0][1:].upper()
