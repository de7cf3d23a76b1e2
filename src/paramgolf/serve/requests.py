"""What a client asks for, checked; and the errors that it gets."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_TOKENS = 2048
"""Of one completion."""
MAX_PROMPT_TOKENS = 16_384
MAX_STOPS = 4
NUM_BEST = 5

COMPLETION_DEFAULTS = {"max_tokens": 16, "temperature": 1.0, "top_p": 1.0}
"""Those of OpenAI's interface."""
PAGE_DEFAULTS = {"max_tokens": 0, "temperature": 0.8, "top_p": 0.95}


class RequestError(Exception):
    """A request that cannot be answered: an HTTP status and a sentence."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        """Build the error; `param` is the key of the request that it is about."""
        super().__init__(message)
        self.status = status
        self.headers = {"Retry-After": "1"} if status == 503 else {}
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = "model_not_found" if param == "model" else None
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }


class Sampling(NamedTuple):
    """The text to continue, and how."""

    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int


class Completion(NamedTuple):
    """A request for a completion."""

    sampling: Sampling
    stop: tuple[str, ...]
    logprobs: int | None
    """How many of the most likely tokens to name with every token; None: no probabilities."""
    echo: bool
    """Whether the prompt is repeated."""
    stream: bool
    include_usage: bool
    """Whether the stream ends with the number of tokens."""


_SAMPLING: dict[str, tuple[type, str, Callable[[float], bool]]] = {
    "max_tokens": (int, f"an integer from 0 to {MAX_TOKENS:,}", lambda x: 0 <= x <= MAX_TOKENS),
    "temperature": (float, "a number from 0 to 2", lambda x: 0 <= x <= 2),
    "top_p": (float, "a number over 0 and at most 1", lambda x: 0 < x <= 1),
    "seed": (int, "an integer from 0 to 2^63 - 1", lambda x: 0 <= x < 2**63),
}
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
"""Parameters of OpenAI's interface with the only values that are understood."""
_OTHERS = ("model", "prompt", "stop", "logprobs", "echo", "stream", "stream_options", "user")


def json_object(body: bytes) -> dict[str, Any]:
    """Return the body of a request without its nulls, which stand for defaults.

    Raises:
        RequestError: if it is not a JSON object.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise RequestError("the body is not a JSON object")
    return {name: value for name, value in values.items() if value is not None}


def sampling_of(values: dict[str, Any], defaults: dict[str, Any]) -> Sampling:
    """Check what says how to sample; without a seed, one is drawn.

    Raises:
        RequestError: if a value is invalid.
    """
    given = values.get("prompt", "")
    prompt: Any = given[0] if isinstance(given, list) and len(given) == 1 else given
    _require(isinstance(prompt, str), "prompt", values, "one text, as a string")
    numbers = {"seed": random.getrandbits(32), **defaults}
    for name, (kind, expected, allows) in _SAMPLING.items():
        value = values.get(name, numbers[name])
        number = isinstance(value, int) or (kind is float and isinstance(value, float))
        _require(number and not isinstance(value, bool) and allows(value), name, values, expected)
        numbers[name] = value
    return Sampling(prompt, **numbers)


def completion_of(values: dict[str, Any], model: str) -> Completion:
    """Check a request for a completion by the model of this name.

    Raises:
        RequestError: if a key is unknown or a value invalid or not supported.
    """
    for name in values:
        if name not in (*_SAMPLING, *_UNSUPPORTED, *_OTHERS):
            raise RequestError(f"unknown parameter {name!r}", name)
    require_model(values.get("model", model), model)
    for name, understood in _UNSUPPORTED.items():
        if values.get(name, understood[0]) not in understood:
            raise RequestError(
                f"{name} = {_shown(values[name])} is not supported: leave it out", name
            )
    sampling = sampling_of(values, COMPLETION_DEFAULTS)
    stop = values.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    texts = isinstance(stop, list) and all(isinstance(text, str) and text for text in stop)
    expected = f"a text that is not empty, or a list of at most {MAX_STOPS}"
    _require(texts and len(stop) <= MAX_STOPS, "stop", values, expected)
    logprobs = values.get("logprobs")
    is_count = type(logprobs) is int and 0 <= logprobs <= NUM_BEST
    _require(logprobs is None or is_count, "logprobs", values, f"an integer from 0 to {NUM_BEST}")
    options = values.get("stream_options", {})
    for name in ("echo", "stream"):
        _require(isinstance(values.get(name, False), bool), name, values, "true or false")
    usage = options.get("include_usage", False) if isinstance(options, dict) else None
    expected = '{"include_usage": true or false}'
    _require(isinstance(usage, bool), "stream_options", values, expected)
    return Completion(
        sampling,
        tuple(stop),
        logprobs,
        values.get("echo", False),
        values.get("stream", False),
        bool(usage),
    )


def require_model(name: Any, model: str) -> None:
    """Check that a request names the model that is served.

    Raises:
        RequestError: with status 404, if not.
    """
    if name != model:
        raise RequestError(f"no model {_shown(name)}: this server has {model!r}", "model", 404)


def _require(ok: bool, name: str, values: dict[str, Any], expected: str) -> None:
    if not ok:
        raise RequestError(f"invalid {name} = {_shown(values[name])}: expected {expected}", name)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
