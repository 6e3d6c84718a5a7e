"""A stand-in for curl: knows the addresses of Vertex AI and Service Usage that a deployment needs, and no other.

Independent of gcloud, which cannot do what is asked for here.
"""

from __future__ import annotations

import json
import re
import sys

from state import TOKEN, Cloud, Json, Refused, as_sent, opened, same_project

BARE, VALUED = {"--silent", "--show-error"}, {"--request", "--header", "--data", "--write-out"}
ENDPOINTS = re.compile(
    r"https://(?P<host>[a-z0-9-]+)-aiplatform\.googleapis\.com/v1/(?P<parent>projects/(?P<project>"
    r"[\w-]+)/locations/(?P<region>[a-z0-9-]+))/endpoints(/(?P<endpoint>\w+)/operations)?"
)
QUOTA = re.compile(
    r"https://serviceusage\.googleapis\.com/v1beta1/projects/(?P<project>[\w-]+)/services/aiplatform\."
    r"googleapis\.com/consumerQuotaMetrics/aiplatform\.googleapis\.com%2F(?P<metric>\w+)\?view=FULL"
)


def main(arguments: list[str]) -> int:
    with opened() as cloud:
        cloud.state["calls"].append(["curl", *arguments])
        options, headers, address = parse(arguments)
        if f"Authorization: Bearer {TOKEN}" not in headers:
            status, answer = 401, {"error": {"message": "no login"}}
        else:
            try:
                cloud.fault_of(f"curl {options['--request']} {address}")
                status, answer = 200, answer_of(cloud, options, address)
            except Refused as error:
                status, answer = 403, {"error": {"message": str(error)}}
    sys.stdout.write(
        json.dumps(as_sent(answer)) + options["--write-out"].replace("\\n", "\n").replace("%{http_code}", str(status))
    )
    return 0


def parse(arguments: list[str]) -> tuple[dict[str, str], list[str], str]:
    options: dict[str, str] = {}
    headers: list[str] = []
    addresses: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--header":
            header = next(rest)
            headers += sys.stdin.read().splitlines() if header == "@-" else [header]
        elif word in VALUED:
            options[word] = next(rest)
        elif word not in BARE and not word.startswith("-"):
            addresses.append(word)
        elif word not in BARE:
            sys.exit(f"curl: option {word}: is unknown")
    (address,) = addresses
    return options, headers, address


def answer_of(cloud: Cloud, options: dict[str, str], address: str) -> Json:
    method = options["--request"]
    if (match := QUOTA.fullmatch(address)) and method == "GET":
        same_project(match["project"])
        return _quota(cloud, match["metric"])
    match = ENDPOINTS.fullmatch(address)
    if match is None or match["host"] != match["region"]:
        raise Refused(f"404: {method} {address}")
    same_project(match["project"])
    if method == "POST" and not match["endpoint"]:
        return cloud.create_endpoint(match["parent"], json.loads(options["--data"]))
    if method == "GET" and match["endpoint"]:
        return {"operations": cloud.operations_on(f"endpoints/{match['endpoint']}")}
    raise Refused(f"404: {method} {address}")


def _quota(cloud: Cloud, metric: str) -> Json:
    if metric not in cloud.state["quota"]:
        raise Refused(f"there is no quota {metric}")
    if (buckets := cloud.state["quota_buckets"]) is not None:
        return {"consumerQuotaLimits": [{"quotaBuckets": buckets}]}
    here = {"effectiveLimit": cloud.state["quota"][metric], "dimensions": {"region": "us-central1"}}
    return {"consumerQuotaLimits": [{"quotaBuckets": [{"effectiveLimit": "0"}, here]}]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
