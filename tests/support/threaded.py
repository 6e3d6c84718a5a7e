"""A server of the standard library's kind that answers from a thread of the tests' own process.

Independent of what is asked of the server and of what it answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import TypeVar

POLL_SECONDS = 0.01  # between two looks at whether it shall end
AnyServer = TypeVar("AnyServer", bound=BaseServer)


@contextmanager
def answering(server: AnyServer) -> Iterator[AnyServer]:
    """The server, which answers until the end of `with` and is closed then."""
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
