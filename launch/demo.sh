#!/usr/bin/env bash
# From nothing but Python 3.11 to a trained LatentOmni in small, its scores and a page to look at:
#
#   bash launch/demo.sh              14 to 17 minutes on two cores of a Zen 4, older ones longer
#   bash launch/demo.sh --quick      3 minutes: everything smaller, and little is learned
#
# VENV and PYTHON: see launch/environment.sh. What it makes is in runs/demo, or
# runs/demo-quick; interrupted, it goes on.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
prepare_environment data report
exec python -m launch.demo "$@"
