"""Every kind of problem that the server gives: the one list that errors, their document and the contract are made from.

It does not know what leads to them: `serving/http/problems.py` and whoever raises do.

    python -m serving.http.problem_kinds > docs/errors.md
"""

from __future__ import annotations

from dataclasses import dataclass

TYPE_PREFIX = "urn:yue:problem:"

# Where a kind may come from; an operation of the contract names those that it can meet.
ANYWHERE = "anywhere"
BODY = "body"  # a JSON body is read
QUERY = "query"  # query parameters are read
PREDICT = "predict"
DOWNLOAD = "download"
STORE = "store"  # jobs are read or written
JOB = "job"  # a job is named
AUDIO = "audio"  # a track is sent


@dataclass(frozen=True)
class ProblemKind:
    """One `type`. `status` None: as the problems inside it have. Both sentences are for the client's author."""

    name: str
    status: int | None
    places: tuple[str, ...]
    meaning: str
    advice: str

    @property
    def type(self) -> str:
        """As it stands in a problem."""
        return TYPE_PREFIX + self.name

    @property
    def title(self) -> str:
        """The same for every problem of this kind."""
        return self.name.replace("-", " ").capitalize()


_KINDS = (
    ProblemKind("bad-request", 400, (ANYWHERE,), "The HTTP request itself is malformed.", "Correct the request."),
    ProblemKind("unauthorized", 401, (ANYWHERE,), "The server needs a key.", "Send one, as `detail` says."),
    ProblemKind(
        "host-not-allowed",
        403,
        (ANYWHERE,),
        "The server was asked by a name that is not its own.",
        "Use its address, or have the name added to `YUE_ALLOWED_HOSTS`.",
    ),
    ProblemKind(
        "cross-site",
        403,
        (ANYWHERE,),
        "A browser sent the request for a page of another site, to a server without a key.",
        "Ask from a program or from a page of the server itself, or set `YUE_API_KEY`.",
    ),
    ProblemKind("forbidden", 403, (ANYWHERE,), "That is for administrators only.", "Do what `detail` says."),
    ProblemKind("invalid-json", 400, (BODY,), "The body is no JSON.", "Send JSON, encoded as UTF-8."),
    ProblemKind(
        "invalid-request", 400, (BODY,), "The body or an instance is not an object.", "Send what `detail` allows."
    ),
    ProblemKind(
        "invalid-field",
        400,
        (BODY, QUERY),
        "One field is wrong: `field`, `value`, `allowed`, in lyrics `line`.",
        "Correct that field.",
    ),
    ProblemKind(
        "invalid-fields", 400, (BODY, QUERY), "Several fields are wrong; `errors` has each.", "Correct them all."
    ),
    ProblemKind(
        "unknown-model", 400, (PREDICT, DOWNLOAD), "There is no model of that name.", "Take one that `allowed` names."
    ),
    ProblemKind(
        "response-too-large",
        400,
        (PREDICT, AUDIO),
        "The song, or what is expected of it, is larger than an answer may be.",
        "Fetch it in pieces: see `detail`; or ask for fewer tracks, segments or a smaller format.",
    ),
    ProblemKind(
        "not-found",
        404,
        (PREDICT, JOB, AUDIO),
        "There is no such path, job or track.",
        "Look at the path and the id; finished jobs are forgotten in time.",
    ),
    ProblemKind(
        "method-not-allowed", 405, (), "The path does not know this method.", "Take one that the header `Allow` names."
    ),
    ProblemKind(
        "not-acceptable",
        406,
        (PREDICT,),
        "What `Accept` asks for cannot be given.",
        "Accept JSON, or the audio format of the only instance, see `allowed`.",
    ),
    ProblemKind("request-timeout", 408, (BODY,), "The body did not come to its end in time.", "Send it again."),
    ProblemKind(
        "conflict",
        409,
        (PREDICT, DOWNLOAD, JOB, AUDIO),
        "The request does not fit what is going on: a `request_id` of another request, another model being loaded, "
        "audio of a song that is not done.",
        "Read `detail`; wait, or send another `request_id`.",
    ),
    ProblemKind(
        "cancelled",
        409,
        (PREDICT, DOWNLOAD),
        "Somebody cancelled the song, or the download that it waited for.",
        "Ask again for a new one, with a new `request_id`.",
    ),
    ProblemKind(
        "precondition-failed",
        412,
        (AUDIO,),
        "The file is not the one that `If-Match` names.",
        "Ask without the condition, or for another job.",
    ),
    ProblemKind(
        "request-entity-too-large",
        413,
        (BODY,),
        "The body is larger than the server takes.",
        "Send fewer instances or less reference audio; `allowed` is in bytes.",
    ),
    ProblemKind("request-uri-too-long", 414, (), "The request's line is too long.", "Send what is long in the body."),
    ProblemKind(
        "unsupported-media-type",
        415,
        (BODY,),
        "The body is not declared as JSON, or it is compressed.",
        "Send `Content-Type: application/json` and no `Content-Encoding`.",
    ),
    ProblemKind(
        "requested-range-not-satisfiable",
        416,
        (AUDIO,),
        "The range lies outside the file.",
        "Ask for a range within the file's `bytes`.",
    ),
    ProblemKind(
        "request-header-fields-too-large",
        431,
        (),
        "The request has too many headers, or one is too long.",
        "Send fewer and shorter ones.",
    ),
    ProblemKind(
        "queue-full", 429, (PREDICT,), "Too many songs wait already.", "Try again after `Retry-After` seconds."
    ),
    ProblemKind(
        "deadline-unreachable",
        503,
        (PREDICT,),
        "By what songs took here, this one would be done after its `deadline_seconds`.",
        "Allow more time, or try again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "deadline-passed",
        504,
        (PREDICT,),
        "The song's deadline passed while it waited, so it was not sung.",
        "Send it again, with more time.",
    ),
    ProblemKind(
        "too-many-waiters",
        503,
        (JOB,),
        "As many streams and requests wait as may.",
        "Ask for the job's state instead, or try again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "reference-unavailable",
        503,
        (PREDICT,),
        "Reference audio could not be fetched from its address, or had to wait too long for others.",
        "Try again after `Retry-After` seconds, or send it as base64.",
    ),
    ProblemKind(
        "internal-error",
        500,
        (ANYWHERE,),
        "A mistake in the server.",
        "Look for `error_id` in the server's log, and report it.",
    ),
    ProblemKind(
        "song-failed",
        500,
        (PREDICT,),
        "The song could not be made.",
        "Read `detail`; the same request most likely fails again.",
    ),
    ProblemKind(
        "checkpoint-broken",
        500,
        (PREDICT, DOWNLOAD),
        "A file of weights is missing or broken.",
        'Repair the weights, or send `{"force": true}` to `/download-models`.',
    ),
    ProblemKind(
        "being-accepted",
        503,
        (PREDICT,),
        "Another request with this `request_id` is not accepted yet.",
        "Send it again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "stopping",
        503,
        (PREDICT, DOWNLOAD),
        "The server stops, and takes no more work.",
        "Send it again, to another server or a little later.",
    ),
    ProblemKind(
        "download-failed",
        503,
        (PREDICT, DOWNLOAD),
        "The weights could not be brought here.",
        "Do what `detail` says, or try again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "engine-failed",
        503,
        (PREDICT, DOWNLOAD),
        "The process that sings ended or could not be started.",
        "Try again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "interrupted",
        503,
        (PREDICT,),
        "The servers that sang the song ended before it was done, twice.",
        "Send it again, with a new `request_id`.",
    ),
    ProblemKind(
        "storage-failed",
        503,
        (STORE,),
        "Jobs cannot be written or read now.",
        "Try again after `Retry-After` seconds; look at `YUE_DATA`.",
    ),
    ProblemKind(
        "storage-full",
        507,
        (STORE,),
        "There is no room for another song.",
        "Make room in `YUE_DATA`, or lower `YUE_KEEP_BYTES`.",
    ),
    ProblemKind(
        "all-instances-failed",
        None,
        (PREDICT,),
        "None of several instances could be sung; `errors` has a problem for each.",
        "Look at each; the status is theirs, or the worst of theirs.",
    ),
)

KINDS = {kind.name: kind for kind in _KINDS}

HEAD = """\
# Errors

Every error is an RFC 9457 problem, `application/problem+json`:

```json
{"type": "urn:yue:problem:invalid-field", "title": "Invalid field", "status": 400, "instance": "/predict#/instances/0",
 "detail": "top_p: got 2; allowed: a number above 0, up to 1",
 "field": "top_p", "value": 2, "allowed": "a number above 0, up to 1"}
```

`type` is for programs: it is one of those below, and what it means never changes. `title` goes with it. `detail` is
for people and may change. `instance` is the path, and in `/predict` the place of the instance in the request. Other
members stand there where they are known: `field`, `value` (shortened), `allowed`, `line`, `errors`, `job_id`,
`error_id`. A problem that passes has the header `Retry-After`, in seconds.

A song that is not sung because of its own mistake, beside others that are, has its problem in its prediction's
`error`; so has a job that failed. Those problems have the same form.

| `urn:yue:problem:…` | Status | What it means | What to do |
|---|---|---|---|
"""


def markdown() -> str:
    """The document of all kinds."""
    rows = (
        f"| `{kind.name}` | {kind.status or 'theirs'} | {kind.meaning} | {kind.advice} |\n" for kind in KINDS.values()
    )
    return HEAD + "".join(rows)


if __name__ == "__main__":
    print(markdown(), end="")
