"""Somebody who is told by HTTP, and who can be out of order, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """Answers with the next of `answers`, then with 200; keeps what it took."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    #: Path, headers and body of each request, whatever it was answered.
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    taken: list[Any] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, count: int, timeout_s: float = 180.0) -> list[Any]:
        """What it took, once that is `count`."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.taken) >= count, timeout_s), self.asked
            return list(self.taken)

    def wait_asked(self, count: int, timeout_s: float = 180.0) -> None:
        """Return once it was asked so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, timeout_s)


@contextmanager
def receiving(*answers: int) -> Iterator[Receiver]:
    """A receiver that first gives `answers`."""
    receiver = Receiver(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with receiver.changed:
                status = receiver.answers.pop(0) if receiver.answers else 200
                receiver.asked.append((self.path, headers, json.loads(raw)))
                if status == 200:
                    receiver.taken.append(json.loads(raw))
                receiver.changed.notify_all()
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
