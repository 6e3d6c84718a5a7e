"""Every kind of problem with its status and title: the one table behind errors, their document and the contract.

Independent of what causes them: `serving/jobs/errors.py` and `serving/http/problems.py` say so.

    python -m serving.http.problem_kinds > docs/errors.md
"""

from __future__ import annotations

from dataclasses import dataclass

TYPE_PREFIX = "urn:yue:problem:"

# The sources of a kind; an operation of the contract lists those that apply to it.
ANYWHERE = "anywhere"
BODY = "body"  # a JSON body is read
QUERY = "query"  # query parameters are read
PREDICT = "predict"
DOWNLOAD = "download"
STORE = "store"  # jobs are read or written
JOB = "job"  # a job is named
AUDIO = "audio"  # a track is sent
STUDIO = "studio"  # a file of the studio is sent


@dataclass(frozen=True)
class ProblemKind:
    """One `type`. `status` None: the status of the problems inside it. Both sentences are for authors of clients."""

    name: str
    status: int | None
    places: tuple[str, ...]
    meaning: str
    advice: str

    @property
    def type(self) -> str:
        """The `type` of a problem."""
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
        "The `Host` header names another server.",
        "Use its address, or have the name added to `YUE_ALLOWED_HOSTS`.",
    ),
    ProblemKind(
        "cross-site",
        403,
        (ANYWHERE,),
        "A browser sent the request for a page of another site, to a server without a key.",
        "Use a program or a page of the server itself, or set `YUE_API_KEY`.",
    ),
    ProblemKind("forbidden", 403, (ANYWHERE,), "Only administrators may do that.", "Do what `detail` says."),
    ProblemKind("invalid-json", 400, (BODY,), "The body is not JSON.", "Send JSON, encoded as UTF-8."),
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
        "unknown-model", 400, (PREDICT, DOWNLOAD), "There is no model of that name.", "Use one that `allowed` lists."
    ),
    ProblemKind(
        "response-too-large",
        400,
        (PREDICT, AUDIO),
        "The song, or its expected size, is larger than an answer may be.",
        "Fetch it in pieces, as `detail` says, or ask for fewer tracks or segments, or a smaller format.",
    ),
    ProblemKind(
        "not-found",
        404,
        (PREDICT, JOB, AUDIO, STUDIO),
        "There is no such path, job, track or file.",
        "Check the path and the id; old finished jobs are deleted.",
    ),
    ProblemKind(
        "method-not-allowed", 405, (), "The path does not allow this method.", "Use one that the header `Allow` lists."
    ),
    ProblemKind(
        "not-acceptable",
        406,
        (PREDICT,),
        "None of the media types in `Accept` is available.",
        "Accept JSON, or the audio format of the only instance; see `allowed`.",
    ),
    ProblemKind("request-timeout", 408, (BODY,), "The body did not arrive in time.", "Send it again."),
    ProblemKind(
        "conflict",
        409,
        (PREDICT, DOWNLOAD, JOB, AUDIO),
        "The request does not fit the current state: a `request_id` of another request, another model that is being "
        "loaded, audio of an unfinished song.",
        "Read `detail`; wait, or send another `request_id`.",
    ),
    ProblemKind(
        "cancelled",
        409,
        (PREDICT, DOWNLOAD),
        "The song was cancelled, or the download that it waited for.",
        "Send a new request, with a new `request_id`.",
    ),
    ProblemKind(
        "precondition-failed",
        412,
        (AUDIO,),
        "The file is not the one that `If-Match` names.",
        "Omit the condition, or ask for another job.",
    ),
    ProblemKind(
        "request-entity-too-large",
        413,
        (BODY,),
        "The body is larger than allowed.",
        "Send fewer instances or less reference audio; `allowed` is in bytes.",
    ),
    ProblemKind("request-uri-too-long", 414, (), "The request line is too long.", "Send long values in the body."),
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
        "Send fewer and shorter headers.",
    ),
    ProblemKind(
        "queue-full", 429, (PREDICT,), "Too many songs are waiting already.", "Try again after `Retry-After` seconds."
    ),
    ProblemKind(
        "deadline-unreachable",
        503,
        (PREDICT,),
        "By the duration of the songs before it, this one would be done after its `deadline_seconds`.",
        "Allow more time, or try again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "deadline-passed",
        504,
        (PREDICT,),
        "The song's deadline passed while it waited, so it was not generated.",
        "Send it again, with more time.",
    ),
    ProblemKind(
        "too-many-waiters",
        503,
        (JOB,),
        "All wait slots for streams and requests are taken.",
        "Ask for the job's state instead, or try again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "reference-unavailable",
        503,
        (PREDICT,),
        "Reference audio could not be fetched from its address, or not be decoded in time.",
        "Try again after `Retry-After` seconds, or send it as base64.",
    ),
    ProblemKind(
        "internal-error",
        500,
        (ANYWHERE,),
        "A bug in the server.",
        "Look for `error_id` in the server's log, and report it.",
    ),
    ProblemKind(
        "song-failed",
        500,
        (PREDICT,),
        "The song could not be generated.",
        "Read `detail`; the same request will probably fail again.",
    ),
    ProblemKind(
        "checkpoint-broken",
        500,
        (PREDICT, DOWNLOAD),
        "A weights file is missing or broken.",
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
        "The server is stopping, and accepts no more work.",
        "Send it again, to another server or a little later.",
    ),
    ProblemKind(
        "download-failed",
        503,
        (PREDICT, DOWNLOAD),
        "The weights could not be downloaded.",
        "Do what `detail` says, or try again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "engine-failed",
        503,
        (PREDICT, DOWNLOAD),
        "The engine's process ended, could not be started, or ran out of memory for this song.",
        "Try again after `Retry-After` seconds.",
    ),
    ProblemKind(
        "interrupted",
        503,
        (PREDICT,),
        "The servers that generated the song ended before it was done, twice.",
        "Send it again, with a new `request_id`.",
    ),
    ProblemKind(
        "storage-failed",
        503,
        (STORE,),
        "Jobs cannot be written or read at present.",
        "Try again after `Retry-After` seconds; check `YUE_DATA`.",
    ),
    ProblemKind(
        "storage-full",
        507,
        (STORE,),
        "There is no room for another song.",
        "Free space in `YUE_DATA`, or lower `YUE_KEEP_BYTES`.",
    ),
    ProblemKind(
        "all-instances-failed",
        None,
        (PREDICT,),
        "All of several instances failed; `errors` has a problem for each.",
        "Read each; the status is theirs, or the worst of theirs.",
    ),
)

KINDS = {kind.name: kind for kind in _KINDS}

HEAD = """\
# Errors

This page is for anyone who writes a client and handles its errors.

Every error is an RFC 9457 problem, `application/problem+json`:

```json
{"type": "urn:yue:problem:invalid-field", "title": "Invalid field", "status": 400, "instance": "/predict#/instances/0",
 "detail": "top_p: got 2; allowed: a number above 0, up to 1",
 "field": "top_p", "value": 2, "allowed": "a number above 0, up to 1"}
```

`type` is for programs: it is one of those below, and its meaning never changes. `title` belongs to it. `detail` is
for people and may change. `instance` is the path, and in `/predict` the place of the instance in the request. Other
members are present where they are known: `field`, `value` (shortened), `allowed`, `line`, `errors`, `job_id`,
`error_id`. If trying again may help, the header `Retry-After` says when, in seconds.

If one of several instances fails, its problem is the `error` of its prediction; a failed job has an `error`, too.
Those problems have the same form.

| `urn:yue:problem:…` | Status | What it means | What to do |
|---|---|---|---|
"""


def markdown() -> str:
    """The document that lists all kinds."""
    rows = (
        f"| `{kind.name}` | {kind.status or 'theirs'} | {kind.meaning} | {kind.advice} |\n" for kind in KINDS.values()
    )
    return HEAD + "".join(rows)


if __name__ == "__main__":
    print(markdown(), end="")
