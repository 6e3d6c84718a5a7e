"""HTTP connections that take the answer of a server which did not read the whole request.

They know nothing of what is sent. Such a server, which refuses a body for its size, may hang up while it is still sent:
Python's own connections then tell only that sending failed, though the answer is there.
"""

from __future__ import annotations

import http.client
import ssl
from typing import Any

HUNG_UP = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, ssl.SSLEOFError)


class EarlyAnswers(http.client.HTTPConnection):
    """Where sending fails, an answer is looked for all the same."""

    _hung_up: OSError | None = None

    def request(self, *args: Any, **options: Any) -> None:
        self._hung_up = None
        super().request(*args, **options)

    def send(self, data: Any) -> None:
        if self._hung_up:
            return  # the rest of a body that nobody reads
        try:
            super().send(data)
        except HUNG_UP as error:
            self._hung_up = error

    def getresponse(self) -> http.client.HTTPResponse:
        try:
            return super().getresponse()
        except (OSError, http.client.HTTPException):
            if self._hung_up:
                raise self._hung_up from None
            raise
