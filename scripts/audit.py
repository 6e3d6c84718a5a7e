"""Asks an advisory service about the server's requirements; exits with 1 where a package has a known vulnerability.

Packages that the service does not know are reported and are no failure.
Arguments are passed on to pip-audit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"


def main(arguments: list[str]) -> int:
    """Audit the requirements; return the exit code."""
    wanted = installed(REQUIREMENTS.read_text().splitlines())
    report = ask(wanted, arguments)
    if report is None:
        print(f"NOT AUDITED: the advisory service did not answer about any of the {len(wanted)} packages")
        return 0
    vulnerable = [package for package in report if package.get("vulns")]
    for package in vulnerable:
        for advisory in package["vulns"]:
            fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    unknown = [package["name"] for package in report if "skip_reason" in package]
    if unknown:
        print(f"NOT AUDITED, as the advisory service does not know them: {', '.join(unknown)}")
    audited = f"{len(report) - len(unknown)} of {len(wanted)} packages were audited"
    print(f"{audited}, {len(vulnerable)} have known vulnerabilities")
    return 1 if vulnerable else 0


def installed(lines: list[str]) -> dict[str, str]:
    """Each package that the requirements install, and its version without a build's suffix (2.13.0+cpu)."""
    waiting = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found: dict[str, str] = {}
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if name in found or not needed:
            continue
        package = metadata.distribution(name)
        found[name] = Version(package.version).public
        waiting += map(Requirement, package.requires or [])
    return dict(sorted(found.items()))


def ask(packages: dict[str, str], arguments: list[str]) -> list[dict[str, Any]] | None:
    """pip-audit's report on each package; None where the service cannot be reached."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.writelines(f"{name}=={version}\n" for name, version in packages.items())
        pins.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", pins.name, "--no-deps", "--disable-pip"]
        options = ["--format", "json", "--progress-spinner", "off", *arguments]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
    if not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if "ConnectionError" in done.stderr or "ConnectTimeout" in done.stderr or "ServiceError" in done.stderr:
            print(last)
            return None
        raise SystemExit(f"pip-audit failed: {last}")
    report: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
