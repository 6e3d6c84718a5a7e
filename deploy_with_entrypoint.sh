#!/usr/bin/env bash
# Deploys the server to Vertex AI so that it loads its weights when it starts; see docs/deploy.md.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/deploy.sh
source scripts/deploy.sh

description() {
  cat <<'DESCRIPTION'
Usage: ./deploy_with_entrypoint.sh [OPTION…]

Builds the image and deploys it to a dedicated endpoint of Vertex AI. The weights come when the container starts; songs are taken when they are loaded.
What exists is reused, so it may be run again at any time. It costs money until ./undeploy.sh is run.
DESCRIPTION
}

deploy startup "$@"
