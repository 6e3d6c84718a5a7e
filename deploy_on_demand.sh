#!/usr/bin/env bash
# Deploys the server to Vertex AI so that it loads its weights when they are first needed; see docs/deploy.md.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/deploy.sh
source scripts/deploy.sh

description() {
  cat <<'DESCRIPTION'
Usage: ./deploy_on_demand.sh [OPTION…]

Builds the image and deploys it to a dedicated endpoint of Vertex AI. The weights come with the first request for a song, or when they are asked for.
What exists is reused, so it may be run again at any time. It costs money until ./undeploy.sh is run.
DESCRIPTION
}

deploy on_demand "$@"
