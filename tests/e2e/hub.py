"""A small server that answers as the Hugging Face hub does what a fetch asks it.

Large files (here: shards) lie beside git: `resolve` redirects to another address, which serves
ranges, and lists of files state their SHA-256. Small ones come from `resolve` itself and have the
id of their git object.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

Headers = dict[str, str]


class Request(NamedTuple):
    """What was asked for: a path in the repository, or an address of the API."""

    what: str
    first_byte: int
    token: str


class Fault(NamedTuple):
    """How one answer goes wrong."""

    status: int = 0
    """Answer this instead."""
    headers: Headers = {}  # noqa: RUF012
    after: int = 0
    """Otherwise end after so many bytes,"""
    how: str = "close"
    """"close" or "reset" the connection, or "stall": say nothing more."""


class LocalHub(ThreadingHTTPServer):
    """Data set repositories with commits, on this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        """The files of every commit, by its hash."""
        self.heads: dict[str, str] = {}
        """The commit of a repository's branch main."""
        self.sent: dict[str, bytes] = {}
        """What comes instead of a file's content."""
        self.listed: dict[str, dict[str, Any]] = {}
        """What the list of files says otherwise of a file."""
        self.faults: dict[str, list[Fault]] = {}
        """What goes wrong with the next answers for a path (or "api")."""
        self.serves_ranges = True
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self.over = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Make the files the newest commit of a repository; gives its hash."""
        digest = hashlib.sha1(repo.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        self.commits[digest.hexdigest()] = files
        self.heads[repo] = digest.hexdigest()
        return digest.hexdigest()

    def taken(self) -> list[str]:
        """The names of the files that were asked for since the last call, in order."""
        taken = [request.what.rsplit("/", 1)[-1] for request in self.requests]
        self.requests.clear()
        return [name for name in taken if name not in ("api", "manifest.json")]


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A hub that runs as long as the block."""
    with LocalHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        yield hub
        hub.over.set()
        hub.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which waits 40 ms between headers and content
    server: LocalHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):  # the client was killed
            super().handle()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/([^/]+)", address.path):
            self._list(found[1], unquote(found[2]), parse_qs(address.query))
        elif found := re.fullmatch(
            r"/datasets/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", address.path
        ):
            self._resolve(found[2], found[3])
        elif found := re.fullmatch(r"/large/([0-9a-f]{40})/(.+)", address.path):
            self._file(found[1], found[2])
        else:
            self._error(400, "BadRequest")

    def _list(self, repo: str, revision: str, query: dict[str, list[str]]) -> None:
        hub = self.server
        self._note("api", 0)
        if self._goes_wrong("api"):
            return
        if repo not in hub.heads:
            # The hub does not say whether a repository is missing or private.
            self._error(401, "RepoNotFound")
            return
        commit = hub.heads[repo] if revision == "main" else revision
        if commit not in hub.commits:
            self._error(404, "RevisionNotFound")
            return
        assert query["blobs"] == ["true"] or query["blobs"] == ["True"]
        siblings = [
            _described(path, content) | hub.listed.get(path, {})
            for path, content in hub.commits[commit].items()
        ]
        answer = {"id": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, commit: str, path: str) -> None:
        content = self.server.commits[commit].get(path)
        if content is None:
            self._error(404, "EntryNotFound")
        elif path.endswith(".bin"):
            sha256 = hashlib.sha256(content).hexdigest()
            headers = {"Location": f"/large/{commit}/{path}", "X-Repo-Commit": commit}
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"'}
            self._answer(302, b"", headers)
        else:
            self._file(commit, path)

    def _file(self, commit: str, path: str) -> None:
        content = self.server.sent.get(path, self.server.commits[commit][path])
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        # As what stands before the hub does if it may compress.
        if not self.server.serves_ranges or "gzip" in self.headers.get("Accept-Encoding", ""):
            found = None
        start = int(found[1]) if found else 0
        self._note(path, start)
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        if self._goes_wrong(path, content[start:]):
            return
        if found and start >= len(content):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        elif found:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._answer(206, content[start:], headers)
        else:
            self._answer(200, content, headers)

    def _note(self, what: str, first_byte: int) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.requests.append(Request(what, first_byte, token))

    def _goes_wrong(self, what: str, content: bytes = b"") -> bool:
        """Do what the next fault of a path says, if there is one."""
        faults = self.server.faults.get(what, [])
        if not faults:
            return False
        fault = faults.pop(0)
        if fault.status:
            self._answer(fault.status, b"", fault.headers)
            return True
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: fault.after])
        self.wfile.flush()
        if fault.how == "stall":
            self.server.stalled.set()
            self.server.over.wait(30)
        elif fault.how == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        self.close_connection = True
        return True

    def _error(self, status: int, code: str) -> None:
        body = json.dumps({"error": f"a message of the hub,\nin two lines: {code}"}).encode()
        self._answer(status, body, {"X-Error-Code": code, "Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: Headers) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _described(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub's list of files has it."""
    described: dict[str, Any] = {"rfilename": path, "size": len(content)}
    if path.endswith(".bin"):
        sha256 = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        content = f"oid sha256:{sha256}".encode()  # what git holds is a pointer
    described["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return described
