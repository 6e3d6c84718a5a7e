"""A song instance, read: the song, its model, and how its client wants to be answered.

Independent of queues and answers; `serving/http/request_models.py` checks the fields.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import unquote, urlsplit

from inference import catalog
from inference.audio.stream_encoding import STREAM_FORMATS
from inference.catalog import Model
from inference.errors import InvalidField
from inference.song import MIME_TYPES, REFERENCE_SECONDS, SongRequest
from inference.text import lyrics, lyrics_warnings
from inference.text.lyrics_warnings import Caution
from serving.http import request_models
from serving.http.problems import invalid
from serving.http.request_models import Instance, ReferenceFields
from serving.jobs.errors import another_model
from serving.jobs.song_fields import DRAW_SEED

DRAWN_SEEDS = 2**32  # short enough to be typed again
SONG_FIELDS = tuple(field.name for field in fields(SongRequest))


@dataclass(frozen=True)
class SongInstance:
    """A song instance, checked: the song, and how the client wants to be answered.

    The reference is not decoded or fetched yet, and `request` has none.
    """

    request: SongRequest
    wait_seconds: float | None
    deadline_seconds: float | None
    request_id: str | None
    model: str | None
    cautions: tuple[Caution, ...]
    fingerprint: str  # the same for the same instance, whatever was drawn
    formats: tuple[str, ...]  # that the song might be in: the one that was named, or any
    told_reference: Mapping[str, Any] | None = None  # what can be told of the reference without its audio; JSON
    reference: ReferenceFields | None = None
    stream: bool = False  # the song is listened to while it is generated

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings as text."""
        return tuple(map(str, self.cautions))


def read_song_instance(
    instance: object, parameters: Mapping[str, object], model: Model, key: str | None = None, company: object = None
) -> SongInstance:
    """A song instance, with the parameters where it says nothing, and `key` for its request id.

    `company` is what else the key stands for. Raises Problem and YueError.
    """
    read_from = {**parameters, **request_models.without_nulls(request_models.as_object(instance), Instance)}
    if key is not None and read_from.setdefault("request_id", key) != key:
        raise invalid([InvalidField("Idempotency-Key", key, "what request_id says, or only one of the two")])
    wanted = request_models.read(Instance, read_from)
    _check_model(wanted.model, model)
    seed = secrets.randbelow(DRAWN_SEEDS) if wanted.seed in (None, DRAW_SEED) else wanted.seed
    given: dict[str, Any] = {name: value for name in SONG_FIELDS if (value := getattr(wanted, name, None)) is not None}
    if wanted.guidance_scale:
        given["guidance_scale"] = tuple(wanted.guidance_scale)
    if wanted.tracks:
        given["tracks"] = tuple(wanted.tracks)
    reference = given.pop("reference", None)
    request = SongRequest(**{**given, "seed": seed})
    cautions = _cautions(wanted, model)
    how = (wanted.wait_seconds, wanted.deadline_seconds, wanted.request_id, wanted.model)
    formats = (wanted.format,) if wanted.format else tuple(MIME_TYPES)
    told = cautions, _fingerprint(wanted, company), STREAM_FORMATS if wanted.stream else formats, _told(reference)
    return SongInstance(request, *how, *told, reference, bool(wanted.stream))


def _check_model(name: str | None, model: Model) -> None:
    """A song uses the model that is loaded: one song never makes the server load another."""
    if name is not None and name != model.name:
        catalog.find(name)
        raise another_model(name, model.name)


def _cautions(request: Instance, model: Model) -> tuple[Caution, ...]:
    budget = request.max_new_tokens or SongRequest.max_new_tokens
    cautions = list(lyrics_warnings.cautions(lyrics.parse(request.lyrics), model.name, budget, request.segments))
    if request.reference and not model.takes_reference:
        cautions.append(Caution(f"reference: {model.name} was not trained to continue audio; an -icl model was"))
    return tuple(cautions)


def _told(reference: ReferenceFields | None) -> dict[str, Any] | None:
    """The names of the files that lie at addresses, and the span; the rest of an address may be a secret."""
    if reference is None:
        return None
    files = {
        field.removesuffix("_uri"): {"name": unquote(urlsplit(address).path).rpartition("/")[2]}
        for field, address in reference.addresses().items()
    }
    start = reference.start_seconds or 0.0
    end = start + REFERENCE_SECONDS if reference.end_seconds is None else reference.end_seconds
    return {"start_seconds": start, "end_seconds": end, **files}


def _fingerprint(wanted: Instance, company: object) -> str:
    body = wanted.model_dump(exclude={"request_id", "wait_seconds", "deadline_seconds", "stream"}, exclude_none=True)
    if wanted.seed == DRAW_SEED:
        del body["seed"]
    if company is not None:
        body["company"] = company
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
