"""A real web server that fails on demand, and a log of what it was asked for."""

import contextlib
import http.server
import re
import socket
import struct
import threading
from collections import defaultdict
from pathlib import Path


class FaultyServer:
    """Serves a folder; `faults[name]` are called, one per request, before it serves that file.

    Attributes
    ----------
    folder : Path
    url : str
        Of the folder.
    log : list of tuple
        Name and Range header of each request, in order.
    faults : dict of str to list of callable
        Each gets the handler and the file's bytes, and answers in its own way.
    ranges, etags : bool
        Whether Range is understood; whether an ETag names the file's version.
    """

    def __init__(self, folder: Path, tls=None) -> None:
        self.folder, self.log = folder, []
        self.ranges, self.etags = True, False
        self.faults = defaultdict(list)
        self.over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.outer = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self.url = self.url.replace("http", "https")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, name):
        """Range headers of the requests for one file."""
        return [header for path, header in self.log if path == name]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """A client that went away is no error of the test."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Or each answer waits 40 ms for the acknowledgement of its header.
    disable_nagle_algorithm = True

    def do_GET(self):
        outer = self.server.outer
        name = self.path.partition("?")[0].lstrip("/")
        outer.log.append((name, self.headers.get("Range", "")))
        path = outer.folder / name
        content = path.read_bytes() if path.is_file() else b""
        if outer.faults[name]:
            outer.faults[name].pop(0)(self, content)
        elif not path.is_file():
            status(404)(self, b"")
        else:
            self._serve(content, self.headers.get("Range") if outer.ranges else None)

    do_HEAD = do_GET  # noqa: N815

    def _serve(self, content, header):
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
        if match is None:
            return self.answer(200, content)
        first = int(match[1])
        if first >= len(content):
            return self.answer(416, b"")
        last = min(int(match[2] or len(content)), len(content) - 1)
        place = f"bytes {first}-{last}/{len(content)}"
        return self.answer(206, content[first : last + 1], {"Content-Range": place})

    def answer(self, code, body, headers=(), length=None):
        self.send_response(code)
        if self.server.outer.etags:
            self.send_header("ETag", '"version 1"')
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing on the screen."""


def status(code, **headers):
    """An answer without the file."""
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, _content: handler.answer(code, b"no", names)


def reset(share=0.5):
    """Part of the file, then a connection that is reset."""

    def fault(handler, content):
        handler.answer(200, content[: int(share * len(content))], length=len(content))
        handler.wfile.flush()
        # Long enough for what was sent to be read: a reset throws away what was not.
        handler.server.outer.over.wait(0.1)
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.close()
        handler.close_connection = True

    return fault


def short(share=0.5):
    """Less than Content-Length says, then the end of the connection."""

    def fault(handler, content):
        handler.answer(200, content[: int(share * len(content))], length=len(content))
        handler.close_connection = True

    return fault


def stall(share=0.5):
    """Part of the file, then nothing more."""

    def fault(handler, content):
        handler.answer(200, content[: int(share * len(content))], length=len(content))
        handler.wfile.flush()
        handler.server.outer.over.wait(20)
        handler.close_connection = True

    return fault


def drip(handler, content):
    """One byte at a time, for ever."""
    handler.answer(200, b"", length=len(content))
    with contextlib.suppress(OSError):
        for number in range(len(content)):
            handler.wfile.write(content[number : number + 1])
            if handler.server.outer.over.wait(0.02):
                break
    handler.close_connection = True


def endless(handler, content):
    """More and more, without saying how much."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.server.outer.over.is_set():
            handler.wfile.write(content + bytes(2**16))
    handler.close_connection = True


def replaced(change, **headers):
    """Other bytes than the file's, as `change` makes them."""
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, content: handler.answer(200, change(content), names)


def flipped(content):
    """The same length, one bit changed."""
    return bytes([content[0] ^ 1]) + content[1:]


def page_in_parts(handler, _content):
    """A page for whatever is not there, without its length, as hosts of single-page sites do."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"4\r\n<!do\r\n0\r\n\r\n")


def endless_page(handler, _content):
    """No such file, and a page about it without end."""
    handler.send_response(404)
    handler.send_header("Connection", "close")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.server.outer.over.is_set():
            handler.wfile.write(bytes(2**20))
    handler.close_connection = True
