# SPDX-License-Identifier: Apache-2.0
"""A connection to an archive that can be cut, so that the archive goes away at a chosen moment."""

import contextlib
import socket
import threading
from types import TracebackType

from typing_extensions import Self


class Gate:
    """Pass connections on to a port of this machine.

    Args:
        port: where the archive listens.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.left: int | None = None
        self.closed = False
        self.posts = True
        self.listener = socket.create_server(("127.0.0.1", 0))

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/dicom-web"

    def open(self) -> None:
        self.left, self.closed, self.posts = None, False, True

    def shut(self) -> None:
        """Drop every connection from now on."""
        self.closed = True

    def stop_after(self, count: int) -> None:
        """Cut the connections after so many bytes of answers."""
        self.left = count

    def refuse_posts(self) -> None:
        """Drop what is sent to be stored."""
        self.posts = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.closed:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            for source, sink, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass, args=(source, sink, answers), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 14):
                if self.closed or (not answers and not self.posts and block.startswith(b"POST")):
                    break
                if answers and self.left is not None:
                    self.left -= len(block)
                    if self.left < 0:
                        break
                sink.sendall(block)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
