"""The tokens of sessions: signed, as Flask signs its own cookies, and valid on every replica for some hours.

A token is signed with a secret that follows from the key that opened the session. So it needs no storage, and it ends
when the server no longer accepts that key. Independent of routes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from functools import cache

from itsdangerous import BadSignature, TimestampSigner
from pydantic import SecretStr

COOKIE = "yue_session"
LIFETIME = timedelta(hours=12)
SUBJECT = b"session"
_TOKEN = re.compile(rf"(?:^|[;,\s]){COOKIE}=([^;,\s]*)")


def new_token(key: SecretStr) -> str:
    """A token for a session that `key` opens now."""
    return _signer(key.get_secret_value()).sign(SUBJECT).decode()


def has_token(keys: Collection[SecretStr], cookies: str) -> bool:
    """True if the header Cookie holds a valid token that one of the keys opened."""
    return any(_is_valid(token, key.get_secret_value()) for token in _TOKEN.findall(cookies) for key in keys)


def _is_valid(token: str, key: str) -> bool:
    """True if the token has its signature and its age. Replicas' clocks may differ, so it may come from the future."""
    try:
        _, signed_at = _signer(key).unsign(token, return_timestamp=True)
    except (BadSignature, ValueError, OverflowError, OSError):  # the last three: signed, with no time of this world
        return False
    return datetime.now(UTC) - signed_at <= LIFETIME


@cache
def _signer(key: str) -> TimestampSigner:
    """The signer for a key. Its secret takes 50 ms to derive, so that tokens do not help anyone to guess the key."""
    secret = hashlib.scrypt(key.encode(), salt=b"yue session", n=2**14, r=8, p=1)
    return TimestampSigner(secret, salt=COOKIE, digest_method=hashlib.sha256)
