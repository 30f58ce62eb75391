"""A TCP proxy that passes requests on and, now and then, cuts the connection before the reply comes back."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator


class CuttingProxy:
    """Listens on `port`. While `probability` is above 0, that share of the requests that carry `mark` is done but not
    answered: the client sees a reset. `cut` resets connections at once, whatever goes over them. `cuts` counts both.
    Each answer comes `pause` seconds late."""

    def __init__(self, port: int, *, seed: int = 1, mark: bytes = b"EXEC") -> None:
        self.target = ("127.0.0.1", port)
        self.probability = 0.0
        self.pause = 0.0
        self.cuts = 0
        self.mark = mark
        self._random = random.Random(seed)
        self._pairs: dict[socket.socket, tuple[socket.socket, threading.Thread]] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, share: float = 1.0) -> int:
        """Reset so many of the connections that are open, to both sides, which know it when this returns. How many it
        were."""
        with self._lock:
            chosen = [client for client in self._pairs if self._random.random() < share]
            pairs = [(client, *self._pairs.pop(client)) for client in chosen]
        for client, server, thread in pairs:
            _reset(client)
            _reset(server)
            thread.join(10)  # a socket is not closed before nobody reads from it
        self.cuts += len(pairs)
        return len(pairs)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request, one reply, in turn: what redis-py's pipelines and commands do."""
        server = socket.create_connection(self.target)
        with self._lock:
            self._pairs[client] = server, threading.current_thread()
        cutting = threading.Event()
        threading.Thread(target=self._answer, args=(server, client, cutting), daemon=True).start()
        with contextlib.suppress(OSError), client, server:
            try:
                while request := client.recv(2**20):
                    if self.mark in request and self._random.random() < self.probability:
                        cutting.set()
                    server.sendall(request)
            finally:
                with self._lock:
                    self._pairs.pop(client, None)
                server.shutdown(socket.SHUT_RDWR)  # `_answer` waits there: closed alone, the server would hear nothing

    def _answer(self, server: socket.socket, client: socket.socket, cutting: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while reply := server.recv(2**20):
                if cutting.is_set():
                    self.cuts += 1
                    _reset(client)
                    return
                time.sleep(self.pause)
                client.sendall(reply)
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed alone, `_accept` would wait on
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _reset(side: socket.socket) -> None:
    """Close with a reset, also while another thread reads."""
    with contextlib.suppress(OSError):
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        side.shutdown(socket.SHUT_RD)
        side.close()


@contextlib.contextmanager
def cutting_proxy(port: int, **options: object) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(port, **options)  # type: ignore[arg-type]
    try:
        yield proxy
    finally:
        proxy.close()
