"""A local web server that misbehaves in one way of each folder: /good, /cut, /slow, /silent ..."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves one file; `log` has the folder and the first byte asked for of every request."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.log: list[tuple[str, int]] = []

    def url(self, folder: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{folder}"

    def handle_error(self, request, client_address) -> None:
        """Say nothing when a client hangs up."""


class Handler(BaseHTTPRequestHandler):
    """Answers as the first part of the path says."""

    server: Server

    def do_GET(self) -> None:
        behaviour = self.path.split("/")[1]
        content = self.server.content
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.log.append((behaviour, begin))
        getattr(self, behaviour)(content, begin)

    def start(self, content: bytes, begin: int, length: int | None = None) -> bytes:
        """Send a head, and return what the body should be."""
        rest = content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(rest) if length is None else length))
        self.end_headers()
        return rest

    def good(self, content: bytes, begin: int) -> None:
        self.wfile.write(self.start(content, begin))

    def cut(self, content: bytes, begin: int) -> None:
        """A quarter of the file, and the connection is gone."""
        self.wfile.write(self.start(content, begin)[: len(content) // 4 + 1])

    def cut_and_busy(self, content: bytes, begin: int) -> None:
        """An eighth of the file and a cut, then a refusal, and so on."""
        if len(self.server.log) % 2:
            self.wfile.write(self.start(content, begin)[: len(content) // 8 + 1])
        else:
            self.send_error(503)

    def cut_without_range(self, content: bytes, begin: int) -> None:
        """Ignores Range, and breaks at half of the file, later at the end."""
        first = self.server.log.count(("cut_without_range", 0)) == 1 and begin == 0
        self.wfile.write(self.start(content, 0)[: len(content) // 2 if first else None])

    def no_range(self, content: bytes, begin: int) -> None:
        """Ignores Range."""
        self.wfile.write(self.start(content, 0))

    def wrong_range(self, content: bytes, begin: int) -> None:
        """Sends another part than it was asked for."""
        self.wfile.write(self.start(content, begin + 10 if begin else 0)[: len(content) // 4 + 1])

    def slow(self, content: bytes, begin: int) -> None:
        rest = self.start(content, begin)
        for i in range(0, len(rest), len(content) // 20):
            self.wfile.write(rest[i : i + len(content) // 20])
            self.wfile.flush()
            time.sleep(0.01)

    def silent(self, content: bytes, begin: int) -> None:
        """A third of the file and then nothing, but the connection stays open."""
        self.wfile.write(self.start(content, begin)[: len(content) // 3 + 1])
        self.wfile.flush()
        time.sleep(5)

    def missing(self, content: bytes, begin: int) -> None:
        self.send_error(404)

    def broken(self, content: bytes, begin: int) -> None:
        self.send_error(503)

    def busy_at_first(self, content: bytes, begin: int) -> None:
        if len(self.server.log) < 3:
            self.send_error(503)
        else:
            self.good(content, begin)

    def hangs_up(self, content: bytes, begin: int) -> None:
        """Not a byte of an answer."""

    def login_page(self, content: bytes, begin: int) -> None:
        """What a hotel's network says to everything: 200, and a page of its own."""
        page = b"<html>please log in</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def garbage(self, content: bytes, begin: int) -> None:
        """Something else of the right size."""
        self.wfile.write(self.start(bytes(len(content)), begin))

    def endless(self, content: bytes, begin: int) -> None:
        """No length, and more than the file."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content[:-1] + b"!" + content)

    def redirect(self, content: bytes, begin: int) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.replace("/redirect/", "/good/"))
        self.end_headers()

    def not_http(self, content: bytes, begin: int) -> None:
        self.wfile.write(b"220 this is a mail server\r\n")

    def log_message(self, *_) -> None:
        """Keep quiet."""


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    """Serve a file as long as the block runs."""
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
