"""Configurations that check themselves: numbers in ranges, and plain JSON values in and out."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from paramgolf.errors import ConfigError

_T = TypeVar("_T")


def require(ok: bool, key: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names the key, its value and what is expected, unless `ok`."""
    if not ok:
        raise ConfigError(f"invalid {key} = {value!r}: expected {expected}")


class Range(NamedTuple):
    """The values that a number may have; annotates a field of a configuration."""

    expected: str
    """In words, for error messages."""
    contains: Callable[[float], bool]


_POSITIVE = Range("a value greater than 0 and finite", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = Range("0 or more", lambda x: x >= 0)
PositiveInt = Annotated[int, _POSITIVE]
PositiveFloat = Annotated[float, _POSITIVE]
NonNegativeInt = Annotated[int, _NOT_NEGATIVE]
NonNegativeFloat = Annotated[float, _NOT_NEGATIVE]
Share = Annotated[float, Range("a share between 0 and 1", lambda x: 0 <= x <= 1)]
Horizon = Annotated[float, Range("a share above 0 and up to 1", lambda x: 0 < x <= 1)]
Decay = Annotated[float, Range("at least 0 and below 1", lambda x: 0 <= x < 1)]


def up_to(maximum: int) -> Range:
    """Return the range from 1 to a maximum."""
    return Range(f"between 1 and {maximum:,}", lambda x: 1 <= x <= maximum)


class Checked:
    """Base of the configurations: a new object checks its fields.

    Raises:
        ConfigError: on a number outside its `Range`, or values that do not fit together.
    """

    prefix: ClassVar[str] = ""
    """What error messages put in front of a field's name."""

    def __post_init__(self) -> None:
        for name, allowed in _ranges(type(self)).items():
            value = getattr(self, name)
            require(allowed.contains(value), self.prefix + name, value, allowed.expected)
        self.check_combinations()

    def check_combinations(self) -> None:
        """Check what depends on several fields."""


@functools.cache
def _ranges(cls: type) -> dict[str, Range]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        name: allowed
        for name, hint in hints.items()
        for allowed in getattr(hint, "__metadata__", ())
        if isinstance(allowed, Range)
    }


def to_json(config: Any) -> dict[str, Any]:
    """Return the configuration as plain JSON values; `from_json` returns an equal one."""
    return dataclasses.asdict(config)


def from_json(cls: type[_T], values: Any, where: str = "") -> _T:
    """Build a configuration from JSON values.

    Raises:
        ConfigError: on an unknown or missing key or a value of the wrong type, with its full name.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'the configuration'} is not a JSON object: {values!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(typing.cast(Any, cls))]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f" (did you mean {where}{close[0]}?)" if close else ""
            raise ConfigError(
                f"unknown key {where + str(key)!r}{hint}; expected one of {', '.join(names)}"
            )
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"missing key {where}{missing[0]}")
    return cls(**{name: _convert(hints[name], values[name], where + name) for name in names})


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, key + ".")
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        require(value in allowed, key, value, "one of " + ", ".join(map(str, allowed)))
        return value
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    require(type(value) is hint, key, value, f"type {hint.__name__}")
    return value
