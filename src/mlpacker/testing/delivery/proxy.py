"""A TCP proxy of the kit's own: what passes through it can be cut, either way, or left hanging."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading

CHUNK = 1 << 16


class Proxy:
    """Listens on loopback and passes on to `port`. `cut`: connections are reset and new ones refused. `hang`: nothing passes,
    and nobody is told. `mend`: all is well again; what hung is reset. Use as a context manager."""

    def __init__(self, port: int, listen: int = 0) -> None:
        self.to = port
        self.listener = socket.create_server(("127.0.0.1", listen))
        self.port = self.listener.getsockname()[1]
        self.pairs: dict[socket.socket, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.turn = threading.RLock()
        self.is_cut = False
        self.hangs = False
        self.closing = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def cut(self) -> None:
        with self.turn:
            self.is_cut = True
            self._reset()

    def hang(self) -> None:
        self.hangs = True

    def mend(self) -> None:
        with self.turn:
            if self.hangs:
                self._reset()
            self.is_cut = self.hangs = False

    def close(self) -> None:
        self.closing = True
        self.thread.join(5)
        with self.turn:
            self._reset()
            self.listener.close()
            self.selector.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self.closing:
            for key, _ in self.selector.select(0.05):
                with self.turn:
                    if key.fileobj is self.listener:
                        self._accept()
                    elif not self.hangs:
                        self._pass(key.fileobj)  # type: ignore[arg-type]
            if self.hangs:
                threading.Event().wait(0.02)

    def _accept(self) -> None:
        near, _ = self.listener.accept()
        if self.is_cut:
            _abort(near)
            return
        try:
            far = socket.create_connection(("127.0.0.1", self.to), timeout=1)
        except OSError:
            _abort(near)
            return
        for one, other in ((near, far), (far, near)):
            one.settimeout(5)
            self.pairs[one] = other
            self.selector.register(one, selectors.EVENT_READ)

    def _pass(self, one: socket.socket) -> None:
        other = self.pairs.get(one)
        if other is None:
            return
        try:
            data = one.recv(CHUNK)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        self._end(one, other)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            if self.pairs.pop(end, None) is not None:
                self.selector.unregister(end)
                with contextlib.suppress(OSError):
                    end.close()

    def _reset(self) -> None:
        for one, other in tuple(self.pairs.items()):
            if one in self.pairs:
                self.pairs.pop(one)
                self.pairs.pop(other, None)
                for end in (one, other):
                    self.selector.unregister(end)
                    _abort(end)


def _abort(connection: socket.socket) -> None:
    """Close with a reset, as a cut cable's end does it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
