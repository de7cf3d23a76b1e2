"""A small server that answers what `huggingface_hub` asks the Hugging Face hub for.

* GET /api/datasets/OWNER/NAME/revision/REVISION: commit and files, with sizes and hashes. Large
  files (here: shards) have a SHA-256, small ones the ID of their git object.
* HEAD and GET /datasets/OWNER/NAME/resolve/COMMIT/PATH: a file. HEAD needs `ETag`, `X-Repo-Commit`
  and `Content-Length`; GET serves ranges, by which the library resumes.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

API = "api"
Headers = dict[str, str]


class Fault(NamedTuple):
    """How one answer goes wrong."""

    status: int = 0
    """Answer with this status"""
    code: str = ""
    """and this X-Error-Code;"""
    content: bytes | None = None
    """or send this in place of the file,"""
    after: int | None = None
    """or only this number of bytes, and close the connection,"""
    stall: bool = False
    """or keep it open."""


class LocalHub(ThreadingHTTPServer):
    """Data set repositories with commits, on this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.commits: dict[str, dict[str, bytes]] = {}
        """The files of every commit, by its hash."""
        self.heads: dict[str, str] = {}
        """The commit of a repository's branch main."""
        self.faults: dict[str, Fault] = {}
        """What goes wrong with the next GET of a path (or `API`)."""
        self.requests: list[tuple[str, int]] = []
        """GET requests: path in the repository, or `API`; first byte of the range."""
        self.stalled, self.over = threading.Event(), threading.Event()

    def commit(self, repo: str, files: dict[str, bytes]) -> None:
        """Make the files the newest commit of a repository."""
        digest = hashlib.sha1(repo.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        self.heads[repo] = digest.hexdigest()
        self.commits[self.heads[repo]] = files

    def taken(self) -> list[str]:
        """Return the names of the files downloaded since the last call, in order."""
        taken = [path.rsplit("/", 1)[-1] for path, _ in self.requests]
        self.requests.clear()
        return [name for name in taken if name not in (API, "manifest.json")]


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Run a hub as long as the block lasts."""
    with LocalHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        yield hub
        hub.over.set()
        hub.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it would wait 40 ms between headers and content
    server: LocalHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):  # the client was killed
            super().handle()

    def do_HEAD(self) -> None:
        self._resolve()

    def do_GET(self) -> None:
        if found := re.match(r"/api/datasets/([^/]+/[^/]+)/revision/([^/?]+)\?", self.path):
            self._list(found[1], found[2])
        else:
            self._resolve()

    def _list(self, repo: str, revision: str) -> None:
        hub = self.server
        commit = hub.heads.get(repo, "") if revision == "main" else revision
        if repo not in hub.heads:
            self._answer(401, code="RepoNotFound")  # as the hub does for private ones, too
        elif commit not in hub.commits:
            self._answer(404, code="RevisionNotFound")
        else:
            files = [_listed(path, content) for path, content in hub.commits[commit].items()]
            answer = {"id": repo, "sha": commit, "siblings": files}
            self._send(API, 0, json.dumps(answer).encode())

    def _resolve(self) -> None:
        found = re.fullmatch(r"/datasets/[^/]+/[^/]+/resolve/([0-9a-f]{40})/(.+)", self.path)
        assert found is not None, self.path
        commit, path = found.groups()
        content = self.server.commits[commit].get(path)
        if content is None:
            self._answer(404, code="EntryNotFound")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range", ""))
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit}
        if self.command == "HEAD":
            self._answer(200, content, headers=headers)
        else:
            self._send(path, int(wanted[1]) if wanted else 0, content, headers)

    def _send(self, path: str, start: int, content: bytes, headers: Headers | None = None) -> None:
        """Note a request and answer it, by the fault of its path if there is one."""
        self.server.requests.append((path, start))
        fault = self.server.faults.pop(path, Fault())
        if fault.status:
            self._answer(fault.status, code=fault.code)
            return
        content = (content if fault.content is None else fault.content)[start:]
        self._answer(206 if start else 200, content, headers=headers, after=fault.after)
        if fault.stall:
            self.server.stalled.set()
            self.server.over.wait(30)
        self.close_connection = fault.after is not None

    def _answer(
        self,
        status: int,
        content: bytes = b"",
        code: str = "",
        headers: Headers | None = None,
        after: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"a message of the hub: {code}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:after])
            self.wfile.flush()


def _listed(path: str, content: bytes) -> dict[str, Any]:
    """Describe a file as the hub's list of files does."""
    listed: dict[str, Any] = {"rfilename": path, "size": len(content)}
    if path.endswith(".bin"):
        sha256 = hashlib.sha256(content).hexdigest()
        listed["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        content = f"oid sha256:{sha256}".encode()  # git itself stores a pointer
    listed["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return listed
