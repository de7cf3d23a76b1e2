"""`paramgolf serve` over HTTP: completions, bad requests, busy and leaving clients."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from paramgolf.scoring.predictor import Predictor, load
from paramgolf.serve import server as serving
from paramgolf.serve.engine import MAX_WAITING
from paramgolf.serve.reading import Read
from paramgolf.serve.server import MAX_BODY_BYTES, MAX_CONNECTIONS, Server
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def predictor(mini_run: FinishedRun) -> Predictor:
    return load(mini_run.path / "model.bin", device="cpu")


def listening(predictor: Predictor) -> Server:
    server = Server(predictor, "mini", 0, "paramgolf serve mini")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def closed(server: Server) -> None:
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[Server]:
    server = listening(predictor)
    threading.Thread(target=server.engine.work, daemon=True).start()
    yield server
    closed(server)


def ask(
    server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    content = json.dumps(body) if isinstance(body, dict) else body
    connection.request(method, path, content, JSON if headers is None else headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def complete(server: Server, **request: Any) -> dict[str, Any]:
    response, content = ask(server, "POST", "/v1/completions", request)
    assert response.status == 200, content
    return json.loads(content)


def error(server: Server, *request: Any) -> tuple[int, dict[str, Any]]:
    response, content = ask(server, *request)
    assert response.headers["Content-Type"] == "application/json"
    assert "Access-Control-Allow-Origin" not in response.headers
    found = json.loads(content)["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return response.status, found


# Completions.


@pytest.mark.parametrize(
    "how", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.95, "seed": 3}, {"seed": 2**63 - 1}]
)
def test_the_text_is_that_of_generate(
    server: Server, predictor: Predictor, how: dict[str, Any]
) -> None:
    """Also when it is longer than a window of 64 tokens, and begins in the middle of a text."""
    prompt = "Return the value of an expression. " * 9
    found = complete(server, prompt=prompt, max_tokens=80, **how)
    defaults = {"temperature": 1.0, "top_p": 1.0}
    expected = "".join(predictor.generate(prompt, max_tokens=80, **defaults | how))
    (choice,) = found["choices"]
    assert choice["text"] == expected != ""
    assert (choice["index"], choice["logprobs"]) == (0, None)
    given = len(predictor.tokenizer.encode([prompt])[0]) - 1
    usage = found["usage"]
    assert usage["prompt_tokens"] == given > 64
    assert (choice["finish_reason"] == "length") == (usage["completion_tokens"] == 80)
    assert usage["total_tokens"] == given + usage["completion_tokens"]


def test_a_stream_is_the_same_in_parts(server: Server) -> None:
    request = {"prompt": "The", "max_tokens": 30, "seed": 5, "logprobs": 2, "echo": True}
    whole = complete(server, **request)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response, content = ask(server, "POST", "/v1/completions", request | options)
    assert response.headers["Content-Type"] == "text/event-stream"
    *events, done, end = content.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len(chunks) > 20
    assert len({chunk["id"] for chunk in chunks}) == 1
    *chunks, last = chunks
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    choices = [chunk["choices"][0] for chunk in chunks]
    (expected,) = whole["choices"]
    assert "".join(choice["text"] for choice in choices) == expected["text"]
    for key, values in expected["logprobs"].items():
        assert [each for choice in choices for each in choice["logprobs"][key]] == values
    assert [choice["finish_reason"] for choice in choices][-2:] == [None, expected["finish_reason"]]


def test_the_log_probabilities_of_a_text_are_its_score(
    server: Server, predictor: Predictor
) -> None:
    text = "Some words that are\n more than one window, since every letter is a piece. " * 3
    found = complete(server, prompt=[text], max_tokens=0, echo=True, logprobs=5)["choices"][0]
    score = predictor.score(text, fixed=True)
    listed = found["logprobs"]
    assert found["text"] == text == "".join(listed["tokens"])
    assert len(listed["tokens"]) == score.tokens > 64
    assert -sum(listed["token_logprobs"]) / score.tokens == pytest.approx(score.loss_nats)
    ends = [*listed["text_offset"][1:], len(text)]
    pieces = [text[a:b] for a, b in zip(listed["text_offset"], ends, strict=True)]
    assert pieces == listed["tokens"]
    for token, own, best in zip(
        listed["tokens"], listed["token_logprobs"], listed["top_logprobs"], strict=True
    ):
        assert len(best) == 5
        assert own <= max(best.values()) + 1e-9
        assert best.get(token, own) == pytest.approx(own)


def test_a_stop_ends_the_text(server: Server) -> None:
    request = {"prompt": "The", "max_tokens": 40, "temperature": 0}
    text = complete(server, **request)["choices"][0]["text"]
    stop = text[10:12]
    found = complete(server, **request, stop=["\u4e2d", stop])["choices"][0]
    assert (found["text"], found["finish_reason"]) == (text[: text.find(stop)], "stop")
    assert complete(server, **request, stop=stop)["choices"][0] == found


def test_models(server: Server) -> None:
    _, content = ask(server, "GET", "/v1/models")
    (model,) = json.loads(content)["data"]
    assert (model["id"], model["object"]) == ("mini", "model")
    assert json.loads(ask(server, "GET", "/v1/models/mini")[1]) == model
    assert error(server, "GET", "/v1/models/other")[0] == 404


# Requests that are refused.


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"n": 2}, "n = 2 is not supported"),
        ({"best_of": 3}, "best_of = 3 is not supported"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty = 0.5"),
        ({"temperature": 2.1}, "invalid temperature = 2.1: expected a number from 0 to 2"),
        ({"temperature": True}, "invalid temperature = true"),
        ({"temperature": "1"}, 'invalid temperature = "1"'),
        ({"temperature": float("nan")}, "invalid temperature = NaN"),
        ({"top_p": 0}, "invalid top_p = 0"),
        ({"max_tokens": 2049}, "invalid max_tokens = 2049: expected an integer from 0 to 2,048"),
        ({"max_tokens": 1.5}, "invalid max_tokens"),
        ({"max_tokens": 10**30}, "invalid max_tokens"),
        ({"seed": -1}, "invalid seed"),
        ({"seed": 2**63}, "invalid seed"),
        ({"stop": ""}, "invalid stop"),
        ({"stop": ["a"] * 5}, "a list of at most 4"),
        ({"stop": 5}, "invalid stop"),
        ({"logprobs": 6}, "invalid logprobs = 6"),
        ({"logprobs": True}, "invalid logprobs"),
        ({"echo": 1}, "invalid echo"),
        ({"stream": "yes"}, "invalid stream"),
        ({"stream_options": 1}, "invalid stream_options"),
        ({"prompt": [1, 2]}, "invalid prompt = [1, 2]: expected one text"),
        ({"prompt": ["a", "b"]}, "invalid prompt"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
        ({"prompt": "word " * 17_000}, "expected at most 16,384"),
        ({"colour": "red"}, "unknown parameter 'colour'"),
        (b"[]", "not a JSON object"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "the body is not JSON"),
    ],
)
def test_a_bad_request_gets_400_and_a_sentence(server: Server, request_: Any, words: str) -> None:
    if isinstance(request_, dict):
        request_ = json.dumps(request_).encode()
    status, found = error(server, "POST", "/v1/completions", request_)
    assert (status, found["type"]) == (400, "invalid_request_error")
    assert words in found["message"]
    assert "\n" not in found["message"]
    assert len(found["message"]) < 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/other", {}, 404),
        ("GET", "/v1/completions", {}, 405),
        ("POST", "/v1/models", {}, 405),
        ("OPTIONS", "/v1/completions", {}, 501),
        ("POST", "/v1/completions", {"Content-Type": "text/plain"}, 415),
        ("GET", "/", {"Host": "attacker.example"}, 403),
        ("GET", "/", {"Host": "127.0.0.1.attacker.example:8000"}, 403),
        ("GET", "/", {"Host": "[::1"}, 403),
        ("GET", "/", {"Host": ""}, 403),
        ("POST", "/tokens", JSON | {"Origin": "http://attacker.example"}, 403),
        ("POST", "/tokens", JSON | {"Origin": "null"}, 403),
        ("POST", "/v1/completions", JSON | {"Content-Length": str(MAX_BODY_BYTES + 1)}, 413),
        ("POST", "/v1/completions", JSON | {"Content-Length": "-5"}, 411),
        ("POST", "/v1/completions", JSON | {"Transfer-Encoding": "chunked"}, 411),
        ("GET", "/", {f"X-{number}": "" for number in range(200)}, 431),
    ],
)
def test_other_requests_are_refused(
    server: Server, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    body = None if "Content-Length" in headers or method == "GET" else "{}"
    assert error(server, method, path, body, headers)[0] == status


def test_another_model_is_not_found(server: Server) -> None:
    status, found = error(server, "POST", "/v1/completions", {"model": "gpt-4"})
    assert (status, found["code"], found["param"]) == (404, "model_not_found", "model")
    assert "this server has 'mini'" in found["message"]


def test_a_failure_is_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Iterator[Any]:
        yield from ()
        raise ValueError("of the model")

    monkeypatch.setattr(serving, "read_and_continue", failing)
    status, found = error(server, "POST", "/v1/completions", {})
    assert (status, found["type"], found["message"]) == (
        500,
        "server_error",
        "ValueError: of the model",
    )
    _, content = ask(server, "POST", "/v1/completions", {"stream": True})
    assert json.loads(content.removeprefix(b"data: "))["error"]["type"] == "server_error"


def test_the_page_loads_only_from_here_and_offers_nothing_to_other_pages(server: Server) -> None:
    for path in ("/", "/page.css", "/page.js"):
        response, content = ask(server, "GET", path)
        assert response.status == 200
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert b"//" not in content.replace(b"// ", b"").replace(b"//   ", b"")


# Many clients, and clients that leave.


def test_more_requests_than_may_wait_get_503(predictor: Predictor) -> None:
    server = listening(predictor)
    for _ in range(MAX_WAITING):
        server.engine.submit([])
    response, content = ask(server, "POST", "/v1/completions", {})
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert json.loads(content)["error"]["message"].startswith("8 requests are waiting")
    threading.Thread(target=server.engine.work, daemon=True).start()
    until(lambda: server.engine._waiting.empty())
    assert complete(server, max_tokens=1)["usage"]["completion_tokens"] <= 1
    closed(server)


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_generation(
    server: Server, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = threading.Event(), threading.Event()
    token = int(server.predictor.tokenizer.encode(["a"])[0][-1])

    def endless(*_: Any) -> Iterator[Read]:
        try:
            while True:
                yield Read(token, False, 1.0, 1, [], [])
                began.set()
                time.sleep(0.001)
        finally:
            ended.set()

    monkeypatch.setattr(serving, "read_and_continue", endless)
    body = json.dumps({"stream": stream, "temperature": 0}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert began.wait(30)
        assert not ended.is_set()
    assert ended.wait(30)
    monkeypatch.undo()
    assert complete(server, max_tokens=1)


def test_connections_are_limited_and_freed(predictor: Predictor) -> None:
    server = listening(predictor)
    address = ("127.0.0.1", server.port)
    idle = [socket.create_connection(address) for _ in range(MAX_CONNECTIONS)]
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(server, "GET", "/v1/models")
    for connection in idle:
        connection.close()

    def answered() -> bool:
        with suppress(OSError, http.client.HTTPException):
            return ask(server, "GET", "/v1/models")[0].status == 200
        return False

    until(answered)
    closed(server)


# The command.


def test_a_port_in_use(cli: Cli, server: Server, mini_run: FinishedRun) -> None:
    message = cli.error("serve", mini_run.path, "--port", str(server.port))
    assert f"port {server.port} is in use; use `paramgolf serve {mini_run.path} --port " in message


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_no_port(cli: Cli, mini_run: FinishedRun, port: str) -> None:
    message = cli.error("serve", mini_run.path, "--port", port, code=2)
    assert f"--port = {port}: expected 0 (any free port) to 65535" in message


def test_no_model(cli: Cli, tmp_path: Path) -> None:
    assert "contains no model.bin" in cli.error("serve", tmp_path)
