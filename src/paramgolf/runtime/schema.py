"""Checks JSON values from files that people and other programs may have changed.

A schema is made of Python values:

    str, bool     the type
    int, float    a number from 0 to 10^15 (an int: below 2^63), finite
    Range         a number in it
    frozenset     one of these strings
    (X, None)     X or null
    [X], [X, 1]   a list of X, of at least one X
    {str: X}      an object of any keys, each with an X
    {frozenset: X}  an object of some of these keys, each with an X
    {"a": X, "b?": Y}   an object with the key a, maybe b, and maybe others, which are not checked
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paramgolf.checked import Range
from paramgolf.errors import UserError
from paramgolf.runtime.files import read_json

COUNT = Range("a whole number, 1 or more", lambda x: type(x) is int and 0 < x < 2**63)
POSITIVE = Range("a number greater than 0", lambda x: 0 < x <= 1e15)
TIME = Range("seconds since 1970", lambda x: 0 <= x < 1e11)

_MISSING = object()
_INT = Range("a whole number, 0 or more", lambda x: type(x) is int and 0 <= x < 2**63)
_FLOAT = Range("a number, 0 or more", lambda x: 0 <= x <= 1e15)


def read_record(path: Path, schema: Any, advice: str) -> Any:
    """Read a JSON file and check it; `advice` says what to do with a file that is wrong.

    Raises:
        UserError: if it cannot be read, or naming the first key that the schema does not allow.
    """
    value = read_json(path)
    require_schema(value, schema, str(path), advice)
    return value


def require_schema(value: Any, schema: Any, name: str, advice: str) -> None:
    """Check a value.

    Raises:
        UserError: "NAME: KEY is X; expected Y: ADVICE".
    """
    if problem := _problem(value, schema, ""):
        raise UserError(f"{name}: {problem}: {advice}")


def _problem(value: Any, schema: Any, key: str) -> str:
    """Return what is wrong with a value; "": nothing."""
    if isinstance(schema, tuple) and not isinstance(schema, Range):
        if value is None:
            return ""
        schema = schema[0]
    good, expected = _allows(schema, value)
    if not good:
        found = "missing" if value is _MISSING else repr(value)
        shown = found[:40] + "..." * (len(found) > 40)
        return f"{key or 'the content'} is {shown}; expected {expected}"
    inner: list[tuple[Any, Any, str]] = []
    if isinstance(schema, list):
        inner = [(each, schema[0], f"{key}[{i}]") for i, each in enumerate(value)]
    elif isinstance(schema, dict):
        for name, inside in schema.items():
            inner += _entries(value, name, inside, key)
    return next(filter(None, (_problem(*each) for each in inner)), "")


def _allows(schema: Any, value: Any) -> tuple[bool, str]:
    """Return whether a value is allowed, apart from its parts, and in words what is expected."""
    allowed: Any = _INT if schema is int else _FLOAT if schema is float else schema
    if isinstance(allowed, Range):
        return type(value) in (int, float) and allowed.contains(value), allowed.expected
    if isinstance(schema, frozenset):
        names = ", ".join(sorted(schema)) if len(schema) < 9 else "those that this version writes"
        return isinstance(value, str) and value in schema, f"one of {names}"
    if isinstance(schema, list):
        if schema[1:]:
            return isinstance(value, list) and bool(value), "a list that is not empty"
        return isinstance(value, list), "a list"
    if isinstance(schema, dict):
        return isinstance(value, dict), "an object"
    return isinstance(value, schema), "a text" if schema is str else "true or false"


def _entries(value: dict[str, Any], name: Any, schema: Any, key: str) -> list[tuple[Any, Any, str]]:
    """Return the values that one entry of a schema is about, their schemas and full names."""
    prefix = key and key + "."
    if not isinstance(name, str):
        found = [(each, schema, prefix + own) for own, each in value.items()]
        if isinstance(name, frozenset):
            found += [(own, name, f"a key of {key or 'the content'}") for own in value]
        return found
    own = name.removesuffix("?")
    if own not in value and own != name:
        return []
    return [(value.get(own, _MISSING), schema, prefix + own)]
