#!/usr/bin/env bash
# From nothing but Python 3.11 to an answer with a latent block, in a few minutes:
#
#   bash launch/demo.sh                                      a drawn clip, a small random model
#   bash launch/demo.sh --video FILE --question "..."        your clip
#   bash launch/demo.sh --model DIR --video FILE             a real model
#   EXTRAS=cuda JAX_PLATFORMS=cuda bash launch/demo.sh       on a GPU; EXTRAS=tpu JAX_PLATFORMS=tpu
#
# VENV and PYTHON: see launch/environment.sh. What it makes is in runs/demo.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
prepare_environment ${EXTRAS:-}
exec python -m launch.demo "$@"
