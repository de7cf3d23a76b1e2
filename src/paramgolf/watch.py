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
from pathlib import Path
from typing import NamedTuple, NoReturn

from paramgolf import signals
from paramgolf.distributed import Ranks
from paramgolf.errors import UserError

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
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    def log_to(self, run: Path) -> None:
        """Write errors to `run`/logs/rankN.log from now on."""
        self._logs = run / "logs"

    def close(self) -> None:
        """The run is over without error; all ranks call this."""
        self._ending.set()
        self._tell(_End(self._ranks.rank, 0, ""))
        self._thread.join(_CONNECT_SECONDS)

    def end(self, error: BaseException) -> NoReturn:
        """End this process because of an error, and let the other ranks know."""
        code, why = signals.explain(error)
        # A broken collective is the echo of another rank's end, and so is torchrun's SIGTERM.
        echo = not isinstance(error, UserError) or code == signals.RESUMABLE
        if echo and self._other_ended.wait(_ECHO_SECONDS) and self._other is not None:
            self._finish(self._other)
        self._ending.set()
        self._log("".join(traceback.format_exception(error)))
        self._tell(_End(self._ranks.rank, code, why))
        if self._ranks.main:
            _print(why)
        _exit(code)

    def _connect(self) -> dict[int, socket.socket]:
        """Connections by rank: rank 0 has all, the others one to it."""
        ranks = self._ranks
        if not ranks.main:
            port, token = ranks.from_main((0, ""))
            peer = socket.create_connection((os.environ["MASTER_ADDR"], port), _CONNECT_SECONDS)
            peer.sendall(json.dumps([token, ranks.rank]).encode() + b"\n")
            return {0: _kept_alive(peer)}
        token, peers = secrets.token_hex(16), dict[int, socket.socket]()
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
            ranks.from_main((server.getsockname()[1], token))
            server.settimeout(_CONNECT_SECONDS)
            while len(peers) < ranks.size - 1:
                peer, _ = server.accept()
                peer.settimeout(_CONNECT_SECONDS)
                greeting = peer.makefile("rb").readline(1000)
                if greeting.startswith(json.dumps([token])[:-1].encode()):
                    peers[json.loads(greeting)[1]] = _kept_alive(peer)
        return peers

    def _listen(self) -> None:
        """Until every connection has said how its rank ended, or one ended badly."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    end = _read_end(self._peers[key.data], key.data)
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
        log = f"; its log: {self._logs / f'rank{end.rank}.log'}" if self._logs else ""
        message = end.why if end.code == signals.RESUMABLE else f"rank {end.rank} {what}{log}"
        self._log(message + "\n")
        # Rank 0 speaks for all; for itself, if it could not, the next one.
        if self._ranks.rank == (1 if end.rank == 0 and not end.why else 0):
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


def _read_end(peer: socket.socket, rank: int) -> _End:
    """What the rank at the other end says of how it, or another rank, ended."""
    try:
        line = peer.makefile("rb").readline()
    except OSError:
        line = b""
    return _End(*json.loads(line)) if line.endswith(b"\n") else _End(rank, 1, "")


def _print(message: str) -> None:
    print(f"paramgolf: {message}", file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """Without taking anything apart: a collective that hangs would never let it end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
