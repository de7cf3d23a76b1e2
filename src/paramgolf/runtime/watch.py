"""Watches over the ranks: when one ends or hangs, the others learn within seconds which, and why.

Every rank keeps a connection to rank 0. A rank that ends on purpose says why; one that is killed
leaves a closed connection; TCP's keep-alive detects a machine that vanishes. Through the same
connections the ranks report the last collective that they have entered. So a rank is found that
hangs and keeps the others waiting beyond the limit of the collective.

The watch ends its process itself, since the main thread may hang in a collective that cannot end.
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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from paramgolf.errors import UserError
from paramgolf.runtime import signals
from paramgolf.runtime.ranks import Arrival, Ranks

_OWN_ERROR_SECONDS = 1.0
"""How long the watch lets the main thread, which may be about to report an error, go first."""
_ECHO_SECONDS = 3.0
"""How long an unexpected error waits for an explanation by another rank's end."""
_CONNECT_SECONDS = 60.0
_REPORT_SECONDS = 2.0
"""Seconds between reports of the last collective."""
_GRACE_SECONDS = 10.0
"""How much longer the others wait for rank 0, which normally notices its own delay."""


class _End(NamedTuple):
    """How a rank ended; `why` is empty if it could not report it."""

    rank: int
    code: int
    why: str


class Watch:
    """Tells the other ranks how this one ends, and learns how they end."""

    def __init__(self, ranks: Ranks) -> None:
        """Connect all ranks; collective."""
        self._ranks = ranks
        self._logs: Path | None = None
        self._prints = ranks.main
        self._other: _End | None = None
        self._other_ended = threading.Event()
        self._ending = threading.Event()
        self._peers = self._connect()
        self._unread = dict.fromkeys(self._peers, b"")
        self._arrivals = dict.fromkeys(self._peers, Arrival())
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    def log_to(self, run: Path) -> None:
        """From now on, write errors to `run`/logs/rankN.log."""
        self._logs = run / "logs"

    def close(self) -> None:
        """End the watch after a run without errors; all ranks call this."""
        signals.ignore()
        self._ending.set()
        self._send(_End(self._ranks.rank, 0, ""))
        self._thread.join(_CONNECT_SECONDS)

    def end(self, error: BaseException) -> NoReturn:
        """End this process because of an error, and tell the other ranks."""
        signals.ignore()  # another signal would interrupt this
        code, why = signals.explain(error)
        # Another rank's end breaks collectives here, and makes torchrun send SIGTERM.
        echo = not isinstance(error, UserError) or isinstance(error, signals.Stopped)
        if echo and self._other_ended.wait(_ECHO_SECONDS) and self._other is not None:
            self._finish(self._other)
        self._ending.set()
        trace = "".join(traceback.format_exception(error))
        self._log(trace)
        if "--debug" in sys.argv:
            _print(trace)
        self._send(_End(self._ranks.rank, code, why))
        if self._ranks.main and why:
            _print(why)
        _exit(code)

    def _connect(self) -> dict[int, socket.socket]:
        """Connections by rank: rank 0 is connected to all others."""
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
                    missing = sorted({*range(1, ranks.size)} - peers.keys())
                    raise UserError(
                        f"ranks {missing} did not connect to rank 0 within {_CONNECT_SECONDS:.0f} "
                        "s; the ranks need to reach any port of each other"
                    ) from None
                rank = _greeting(peer, token)
                if rank is not None:
                    peers[rank] = _kept_alive(peer)
        return peers

    def _listen(self) -> None:
        """Listen until all other ranks have ended, or one has failed or hangs."""
        reported = 0
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select(_REPORT_SECONDS):
                    for message in self._received(key.data):
                        if isinstance(message, Arrival):
                            self._arrivals[key.data] = message
                            continue
                        if message.code != 0:
                            self._another_ended(message)
                            return
                        selector.unregister(key.fileobj)
                        del self._arrivals[key.data]
                arrival = self._ranks.arrivals.last
                if arrival.number != reported:
                    reported = arrival.number
                    self._send(arrival[:3])
                missing = self._missing()
                if missing is not None:
                    self._another_ended(missing)
                    return

    def _received(self, rank: int) -> Iterator[_End | Arrival]:
        """What a rank has sent; a closed connection means that it was lost."""
        try:
            content = self._peers[rank].recv(1 << 16)
        except OSError:
            content = b""
        if not content:
            self._prints |= rank == 0
            yield _End(rank, 1, "")
        *lines, self._unread[rank] = (self._unread[rank] + content).split(b"\n")
        for line in lines:
            number, what, value = json.loads(line)
            if isinstance(what, str):  # a name, not an exit code
                yield Arrival(number, what, value, time.monotonic())
            else:
                yield _End(number, what, value)

    def _missing(self) -> _End | None:
        """The rank that keeps others waiting beyond the limit of a collective.

        Rank 0 knows where all ranks are; the others know where they and rank 0 are.
        """
        at = {**self._arrivals, self._ranks.rank: self._ranks.arrivals.last}
        waiting = max(at, key=lambda rank: at[rank].number)
        missing = min(at, key=lambda rank: at[rank].number)
        number, name, limit, moment = at[waiting]
        grace = 0.0 if self._ranks.main else _GRACE_SECONDS
        if at[missing].number == number or time.monotonic() - moment < limit + grace:
            return None
        if not self._ranks.main:
            if missing != 0:
                return None
            self._prints = True
        why = (
            f"it did not enter collective {number} ({name}) within {limit:.0f} s of rank {waiting}"
        )
        return _End(missing, 1, why)

    def _another_ended(self, end: _End) -> None:
        self._other = end
        self._other_ended.set()
        if self._ranks.main:
            self._send(end)
        if not self._ending.wait(_OWN_ERROR_SECONDS):
            self._finish(end)

    def _finish(self, end: _End) -> NoReturn:
        """End this process because a rank, mostly another one, has ended or hangs."""
        self._ending.set()
        what = f"failed: {end.why}" if end.why else "was lost (killed, or its machine is gone)"
        log = self._logs and self._logs / f"rank{end.rank}.log"
        log = f"; its log: {log}" if log and log.exists() else ""
        stopped = end.code in (signals.RESUMABLE, signals.INTERRUPTED)
        message = end.why if stopped else f"rank {end.rank} {what}{log}"
        self._log(message + "\n")
        if end.rank == self._ranks.rank:
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            self._log("it hangs here:\n" + "".join(traceback.format_stack(frame)))
        # Rank 0 prints for all; if it was lost, every rank does, since others may be lost too.
        if self._prints:
            _print(message)
        _exit(end.code)

    def _send(self, message: _End | tuple[int, str, float]) -> None:
        for peer in self._peers.values():
            with suppress(OSError):  # already lost, and every rank learns of that too
                peer.sendall(json.dumps(message).encode() + b"\n")

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
    """A blocking connection that fails at most 20 s after the machine at its other end."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    return peer


def _greeting(peer: socket.socket, token: str) -> int | None:
    """The rank that has connected; None if it is no rank of this run."""
    peer.settimeout(2)
    try:
        # Byte by byte: what follows the line is for `_received`.
        line = b""
        while not line.endswith(b"\n") and len(line) < 100:
            line += peer.recv(1) or b"\n"
        said, rank = json.loads(line)
    except (OSError, ValueError, TypeError):
        return None
    return rank if said == token else None


def _print(message: str) -> None:
    with suppress(OSError):
        print(f"paramgolf: {message}", file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """Exit without any clean-up: a hanging collective would block it."""
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
