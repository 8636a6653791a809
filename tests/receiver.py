"""Somebody's webhook: a real HTTP or HTTPS server on loopback that keeps what it gets and answers what a test wants."""

import base64
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

SECRET = "whsec_" + base64.b64encode(b"\1" * 32).decode()


class Got(NamedTuple):
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


@dataclass
class Receiver:
    """`answers` are given one after another, then 204."""

    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    body: bytes = b""
    got: list[Got] = field(default_factory=list)
    port: int = 0
    silent: threading.Event = field(default_factory=threading.Event)
    """While it is set nothing is answered."""
    work: Callable[[Got], None] = lambda got: None
    """Done with each request before it is answered."""

    @contextmanager
    def listening(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator["Receiver"]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got = Got(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                outer.got.append(got)
                if outer.silent.is_set():
                    self.close_connection = True
                    while outer.silent.is_set() and not outer._ended.wait(0.02):
                        pass
                    return
                outer.work(got)
                status, headers = outer.answers.pop(0) if outer.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(outer.body) if status != 204 else 0))
                self.end_headers()
                if status != 204:
                    self.wfile.write(outer.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._ended = threading.Event()
        server = ThreadingHTTPServer((host, self.port), Handler)
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            server.shutdown()
            server.server_close()
            thread.join(5)
