"""The HTTP server: who may ask for what, and how answers are sent."""

from __future__ import annotations

import errno
import itertools
import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from paramgolf.errors import ConfigError, UserError
from paramgolf.scoring.predictor import Predictor
from paramgolf.serve.completions import Answer, Names
from paramgolf.serve.engine import MAX_WAITING, BusyError, Engine, Job
from paramgolf.serve.page import page_files, shown
from paramgolf.serve.reading import Read, prompt_tokens, read_and_continue
from paramgolf.serve.requests import (
    PAGE_DEFAULTS,
    RequestError,
    Sampling,
    completion_of,
    json_object,
    require_model,
    sampling_of,
)

ADDRESS = "127.0.0.1"
MAX_BODY_BYTES = 1 << 20
MAX_CONNECTIONS = 64
_SECONDS = 30
"""How long a client may take to send, or to receive, something."""
_HOSTS = ("127.0.0.1", "localhost")
"""Another name in the Host header is a web page's that resolves to this machine (DNS rebinding)."""
_COMPLETIONS, _MODELS, _TOKENS = "/v1/completions", "/v1/models", "/tokens"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Listens on the loopback address; `engine.work` must be called to do what it is asked."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, predictor: Predictor, name: str, port: int, command: str) -> None:
        """Start to listen.

        Args:
            predictor: the model.
            name: what clients call it.
            port: 0: any free one.
            command: the beginning of a command line that serves this model, for errors.

        Raises:
            UserError: if the port cannot be used.
        """
        if not 0 <= port <= 65_535:
            raise ConfigError(f"invalid --port = {port}: expected 0 (any free port) to 65535")
        self.predictor, self.name = predictor, name
        self.engine, self.names = Engine(), Names(predictor.tokenizer.model)
        self.files = page_files(predictor, name)
        self.started = int(time.time())
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"fails: {error.strerror}"
            raise UserError(f"port {port} {reason}; use `{command} --port {_free()}`") from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, unless there are too many."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that left in the middle of a request is no error."""


def _free() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


class ClientLeftError(Exception):
    """Nobody is there to be answered any more."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "paramgolf", ""
    timeout = _SECONDS
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    _frame: Callable[[dict[str, Any]], bytes] | None = None
    """How an object is written in the stream that is being sent; None: there is none."""

    def do_GET(self) -> None:
        """Answer with the page or the names of models."""
        self._answer("GET")

    def do_POST(self) -> None:
        """Answer with a completion, or with the tokens for the page."""
        self._answer("POST")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that http.server does not understand."""
        self._refuse(RequestError(message or HTTPStatus(code).phrase, status=code))

    def _answer(self, method: str) -> None:
        try:
            self._route(method)
        except RequestError as error:
            self._refuse(error)
        except BusyError:
            message = f"{MAX_WAITING} requests are waiting already: try again in a second"
            self._refuse(RequestError(message, status=503))
        except (ClientLeftError, OSError):
            self.close_connection = True
        except Exception as error:
            self._refuse(RequestError(f"{type(error).__name__}: {error}", status=500))

    def _route(self, method: str) -> None:
        self._require_local()
        path = unquote(self.path.partition("?")[0])
        methods = {_COMPLETIONS: "POST", _TOKENS: "POST", _MODELS: "GET"}
        methods |= dict.fromkeys(self.server.files, "GET")
        if method == "GET" and path.startswith(_MODELS + "/"):
            require_model(path.removeprefix(_MODELS + "/"), self.server.name)
            self._send_json(self._model())
            return
        if path not in methods:
            paths = f"{_COMPLETIONS} and {_MODELS}"
            raise RequestError(f"nothing is at {path}: there are {paths}", status=404)
        if methods[path] != method:
            raise RequestError(f"{path} expects {methods[path]}, not {method}", status=405)
        if path in self.server.files:
            self._send(*self.server.files[path])
        elif path == _MODELS:
            self._send_json({"object": "list", "data": [self._model()]})
        elif path == _TOKENS:
            self._send_tokens(sampling_of(json_object(self._body()), PAGE_DEFAULTS))
        else:
            self._send_completion(json_object(self._body()))

    def _require_local(self) -> None:
        """Refuse what a web page from elsewhere makes a browser send."""
        host = self.headers.get("Host", "")
        if host.partition(":")[0].lower() not in _HOSTS:
            names = " or ".join(_HOSTS)
            raise RequestError(f"this server is for {names}, not for {host!r}", status=403)
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}":
            raise RequestError("requests from other web pages are refused", status=403)

    def _model(self) -> dict[str, Any]:
        server = self.server
        return {
            "id": server.name,
            "object": "model",
            "created": server.started,
            "owned_by": "paramgolf",
        }

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise RequestError("Content-Length is missing or not a number", status=411)
        if int(length) > MAX_BODY_BYTES:
            raise RequestError(f"the body is longer than {MAX_BODY_BYTES:,} bytes", status=413)
        # Which a web page from elsewhere cannot send without permission (CORS); none is given.
        if self.headers.get_content_type() != "application/json":
            raise RequestError("Content-Type must be application/json", status=415)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ClientLeftError
        return body

    def _send_tokens(self, sampling: Sampling) -> None:
        server = self.server
        tokens = prompt_tokens(server.predictor, sampling.prompt)
        work = read_and_continue(server.predictor, tokens, sampling, read_prompt=True)
        size = len(sampling.prompt.encode())
        reads = self._results(server.engine.submit(work))
        self._stream("application/x-ndjson", _line, shown(reads, server.predictor, size))

    def _send_completion(self, values: dict[str, Any]) -> None:
        server = self.server
        request = completion_of(values, server.name)
        tokens = prompt_tokens(server.predictor, request.sampling.prompt)
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": server.name,
        }
        answer = Answer(head, request, tokens, server.names)
        read_prompt = request.echo and request.logprobs is not None
        work = read_and_continue(server.predictor, tokens, request.sampling, read_prompt)
        reads = self._results(server.engine.submit(work))
        found = answer.parts(reads, server.predictor.tokenizer)
        if not request.stream:
            self._send_json(answer.whole(found))
            return

        chunks = map(answer.chunk, found)
        if request.include_usage:
            chunks = itertools.chain(chunks, (answer.last_chunk() for _ in range(1)))
        self._stream("text/event-stream", _event, chunks)
        self.wfile.write(b"data: [DONE]\n\n")

    def _results(self, job: Job) -> Iterator[Read]:
        """Yield what a job gives; when nobody wants the rest, it is cancelled."""
        try:
            while True:
                if self._client_left():
                    raise ClientLeftError
                try:
                    result = job.results.get(timeout=0.2)
                except queue.Empty:
                    continue
                if result is Job.END:
                    return
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            job.cancelled.set()

    def _client_left(self) -> bool:
        self.connection.setblocking(False)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(_SECONDS)

    def _refuse(self, error: RequestError) -> None:
        self.close_connection = True  # the rest of the request may not have been read
        try:
            if self._frame is not None:
                self.wfile.write(self._frame(error.body))
            else:
                self._send_json(error.body, error.status, error.headers)
        except OSError:
            pass  # the client has left

    def _send_json(
        self, value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self._send("application/json", json.dumps(value).encode(), status, headers)

    def _send(
        self, kind: str, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        length = {"Content-Length": str(len(content))}
        self._begin(kind, status, length | (headers or {}))
        self.wfile.write(content)

    def _stream(
        self,
        kind: str,
        frame: Callable[[dict[str, Any]], bytes],
        objects: Iterable[dict[str, Any]],
    ) -> None:
        """Send objects as they come; the end of the connection is the end of the answer."""
        self.close_connection = True
        self._begin(kind, 200, {})
        self._frame = frame
        for each in objects:
            self.wfile.write(frame(each))

    def _begin(self, kind: str, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        close = {"Connection": "close"} if self.close_connection else {}
        for name, value in ({"Content-Type": kind} | headers | close | _HEADERS).items():
            self.send_header(name, value)
        self.end_headers()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def serve(server: Server) -> None:
    """Answer requests until this is interrupted; the model works in this thread."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        server.engine.work()
    finally:
        server.shutdown()
        server.server_close()
