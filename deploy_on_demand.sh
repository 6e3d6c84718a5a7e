#!/usr/bin/env bash
# Deploys the server to Vertex AI so that it loads its weights when they are first needed; see docs/deploy.md.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
exec python3 scripts/deploy.py on_demand "$@"
