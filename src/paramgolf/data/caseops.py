"""CaseOps: letters in lower case behind operators that say which were capitals; lossless.

A word and its capitalised form then share their pieces. (The record's data of the challenge, PR
#1729, has the same operators.) Only ASCII letters change, so no letter changes its size in UTF-8.

* U+E001 (Title) and U+E003 (next): the letter behind it is a capital.
* U+E002 (CAPS): all letters behind it, up to the next operator or the end of the run of letters.
* U+E004 (escape): the operator behind it is a character of the text.

Capitals that stand together are written with as few operators as can be: one by itself behind
U+E001 where a run of letters begins ("The", "I"), else behind U+E003 ("iPhone"); two or more that
end their run behind one U+E002 ("NASA", "iOS"); of others the last begins what follows and has a
U+E003 of its own ("HTMLParser" is CAPS "html", next "parser"), and what is before it is written as
if it ended the run, one capital by the rule for one.
"""

from __future__ import annotations

import re

TITLE, CAPS, NEXT, ESCAPE = OPERATORS = "\ue001\ue002\ue003\ue004"

_CAPITALS = re.compile("[A-Z\ue001-\ue004](?:(?<=[A-Z])[A-Z]+)?")
_OPERATED = re.compile(
    "\ue001[A-Za-z]?|\ue002[A-Za-z]*|\ue003[A-Za-z]?|\ue004[\ue001-\ue004]?"
)  # each begins with one character, so that the search for them is fast


def to_caseops(text: str) -> str:
    """Any text, with operators for its capitals; the module says how."""
    return _CAPITALS.sub(_with_operators, text)


def from_caseops(text: str) -> str:
    """The text that `to_caseops` was given; it never fails.

    What `to_caseops` does not write: operators with nothing to act on (at the end, before another
    operator or no letter) are dropped, and capitals stay what they are. What a beginning gives is
    the beginning of what the whole gives.
    """
    return _OPERATED.sub(_without_operator, text)


def _with_operators(found: re.Match[str]) -> str:
    capitals, text = found[0], found.string
    if capitals in OPERATORS:
        return ESCAPE + capitals
    before, behind = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
    letters = capitals.lower()
    first = NEXT if before.isascii() and before.isalpha() else TITLE
    if len(letters) == 1:
        return first + letters
    if not "a" <= behind <= "z":
        return CAPS + letters
    return (CAPS if len(letters) > 2 else first) + letters[:-1] + NEXT + letters[-1]


def _without_operator(found: re.Match[str]) -> str:
    return found[0][1:].upper()
