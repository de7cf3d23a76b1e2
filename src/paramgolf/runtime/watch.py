"""The watch over the ranks: when one ends, the others know within seconds which, and why.

Every rank keeps a connection to rank 0. A rank that ends on purpose says why; one that is killed
leaves a closed connection, and a machine that vanishes is found by TCP's keep-alive. Whoever learns
of it ends this process, since the main thread may hang in a collective that cannot finish.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from paramgolf.errors import UserError
from paramgolf.runtime import signals
from paramgolf.runtime.ranks import Ranks

_OWN_ERROR_SECONDS = 1.0
"""How long the main thread, which may be about to report the same error, goes first."""
_ECHO_SECONDS = 3.0
"""How long an unexpected error waits to be explained by another rank's end."""
_CONNECT_SECONDS = 60.0


class _End(NamedTuple):
    """How a rank ended; `why` is empty if it could not say."""

    rank: int
    code: int
    why: str


class Watch:
    """Tells and learns how ranks end."""

    def __init__(self, ranks: Ranks) -> None:
        """Connect all ranks; collective."""
        self._ranks = ranks
        self._logs: Path | None = None
        self._other: _End | None = None
        self._other_ended = threading.Event()
        self._ending = threading.Event()
        self._peers = self._connect()
        self._readers = {rank: peer.makefile("rb") for rank, peer in self._peers.items()}
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    def log_to(self, run: Path) -> None:
        """Write errors to `run`/logs/rankN.log from now on."""
        self._logs = run / "logs"

    def close(self) -> None:
        """The run is over without error; all ranks call this."""
        signals.ignore()
        self._ending.set()
        self._tell(_End(self._ranks.rank, 0, ""))
        self._thread.join(_CONNECT_SECONDS)

    def end(self, error: BaseException) -> NoReturn:
        """End this process because of an error, and let the other ranks know."""
        signals.ignore()  # a second one would break in here
        code, why = signals.explain(error)
        # A broken collective is the echo of another rank's end, and so is torchrun's SIGTERM.
        echo = not isinstance(error, UserError) or code == signals.RESUMABLE
        if echo and self._other_ended.wait(_ECHO_SECONDS) and self._other is not None:
            self._finish(self._other)
        self._ending.set()
        trace = "".join(traceback.format_exception(error))
        self._log(trace)
        if "--debug" in sys.argv:
            _print(trace)
        self._tell(_End(self._ranks.rank, code, why))
        if self._ranks.main:
            _print(why)
        _exit(code)

    def _connect(self) -> dict[int, socket.socket]:
        """Connections by rank: rank 0 has all, the others one to it."""
        ranks = self._ranks
        if not ranks.main:
            port, token = ranks.from_main((0, ""))
            address = os.environ["MASTER_ADDR"], port
            try:
                peer = socket.create_connection(address, _CONNECT_SECONDS)
                peer.sendall(json.dumps([token, ranks.rank]).encode() + b"\n")
            except OSError as error:
                raise UserError(
                    f"rank {ranks.rank} on {socket.gethostname()} cannot reach rank 0 at "
                    f"{address[0]}:{port} ({error}); the ranks need to reach any port of each other"
                ) from error
            return {0: _kept_alive(peer)}
        token, peers = secrets.token_hex(16), dict[int, socket.socket]()
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
            ranks.from_main((server.getsockname()[1], token))
            server.settimeout(_CONNECT_SECONDS)
            while len(peers) < ranks.size - 1:
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    raise UserError(
                        f"only {1 + len(peers)} of {ranks.size} ranks could reach rank 0 within "
                        f"{_CONNECT_SECONDS:.0f} s; they need to reach any port of each other"
                    ) from None
                rank = _greeting(peer, token)
                if rank is not None:
                    peers[rank] = _kept_alive(peer)
        return peers

    def _listen(self) -> None:
        """Until every connection has said how its rank ended, or one ended badly."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    end = _read_end(self._readers[key.data], key.data)
                    selector.unregister(key.fileobj)
                    if end.code != 0:
                        self._another_ended(end)
                        return

    def _another_ended(self, end: _End) -> None:
        self._other = end
        self._other_ended.set()
        if self._ranks.main:
            self._tell(end)
        if not self._ending.wait(_OWN_ERROR_SECONDS):
            self._finish(end)

    def _finish(self, end: _End) -> NoReturn:
        """End this process because another rank has ended."""
        self._ending.set()
        what = f"failed: {end.why}" if end.why else "was lost (killed, or its machine is gone)"
        log = self._logs and self._logs / f"rank{end.rank}.log"
        log = f"; its log: {log}" if log and log.exists() else ""
        message = end.why if end.code == signals.RESUMABLE else f"rank {end.rank} {what}{log}"
        self._log(message + "\n")
        # Rank 0 prints for all; if it was lost, every rank does, since others may be lost too.
        if self._ranks.main or (end.rank == 0 and not end.why):
            _print(message)
        _exit(end.code)

    def _tell(self, end: _End) -> None:
        for peer in self._peers.values():
            try:
                peer.sendall(json.dumps(end).encode() + b"\n")
            except OSError:
                continue  # gone already, which is being told to everybody as well

    def _log(self, text: str) -> None:
        if self._logs is None:
            return
        try:
            self._logs.mkdir(exist_ok=True)
            with (self._logs / f"rank{self._ranks.rank}.log").open("a") as file:
                moment = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"{moment} on {socket.gethostname()}: {text}")
        except OSError as error:
            _print(f"cannot write {self._logs}: {error.strerror}")


def _kept_alive(peer: socket.socket) -> socket.socket:
    """A blocking connection that fails within 20 s of its other end's machine."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    return peer


def _greeting(peer: socket.socket, token: str) -> int | None:
    """The rank that has connected; None for a stranger."""
    peer.settimeout(2)
    try:
        # Byte by byte: what follows the line is for somebody else to read.
        line = b""
        while not line.endswith(b"\n") and len(line) < 100:
            line += peer.recv(1) or b"\n"
        said, rank = json.loads(line)
    except (OSError, ValueError, TypeError):
        return None
    return rank if said == token else None


def _read_end(reader: IO[bytes], rank: int) -> _End:
    """What the rank at the other end says of how it, or another rank, ended."""
    try:
        line = reader.readline()
    except OSError:
        line = b""
    return _End(*json.loads(line)) if line.endswith(b"\n") else _End(rank, 1, "")


def _print(message: str) -> None:
    with suppress(OSError):
        print(f"paramgolf: {message}", file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """Without taking anything apart: a collective that hangs would never let it end."""
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
