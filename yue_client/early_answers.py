"""HTTP connections that read the answer of a server which did not read the whole request.

Such a server, which refuses a body for its size, may close the connection while the body is sent. Python's own
connections then report only that sending failed, though the answer is there.
"""

from __future__ import annotations

import http.client
import ssl
from typing import Any

HUNG_UP = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, ssl.SSLEOFError)


class EarlyAnswers(http.client.HTTPConnection):
    """Reads an answer even where sending fails."""

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
