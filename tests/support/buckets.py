"""Storages in buckets on real servers, for both protocols."""

from __future__ import annotations

import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from storage import Storage
from tests.support.bucket_server import bucket_server


class Place:
    """A server of buckets, which state machines find here: hypothesis makes them without fixtures."""

    def __init__(self) -> None:
        self.storage: Callable[[], Storage] = lambda: pytest.fail("no bucket server")


S3, GOOGLE = Place(), Place()


@contextmanager
def bucket_servers() -> Iterator[None]:
    """Real servers for both protocols; every storage is a new folder in a bucket."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"access_key_id": "x", "secret_access_key": "x", "region": "us-east-1"}
    urllib.request.urlopen(urllib.request.Request(f"{address}/songs", method="PUT")).close()

    def on_s3() -> Storage:
        folder, options = uuid.uuid4().hex, {"allow_http": True}
        store = S3Store("songs", prefix=folder, endpoint=address, client_options=options, **keys)
        return Storage(store, f"s3://songs/{folder}")

    S3.storage = on_s3
    with bucket_server() as google:
        GOOGLE.storage = lambda: google.storage(uuid.uuid4().hex)
        yield
    moto.stop()
