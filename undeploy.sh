#!/usr/bin/env bash
# Removes from Vertex AI what the deploy scripts made; see docs/deploy.md.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
exec python3 scripts/deploy.py undeploy "$@"
