#!/usr/bin/env bash
# A pod's hosts as processes of this machine: see launch/simulate_pod.py, or --help.
#
#   bash launch/simulate_pod.sh --hosts 4 --devices-per-host 2 -- \
#     --config configs/tiny.py --workdir runs/pod --set optimizer.steps=40
#
# VENV and PYTHON: see launch/environment.sh.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment data
exec python -m launch.simulate_pod "$@"
