#!/usr/bin/env bash
# Removes from Vertex AI what the deploy scripts made; see docs/deploy.md.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/deploy.sh
source scripts/deploy.sh

description() {
  cat <<'DESCRIPTION'
Usage: ./undeploy.sh [--all] [OPTION…]

Undeploys the model, then deletes the endpoint and the model. Give the settings that were used to deploy.

  --all                  delete the images, the bucket with all results and the service account, too
DESCRIPTION
}

undeploy "$@"
