#!/usr/bin/env bash
# The tests, from nothing but Python 3.11. Arguments go to pytest:
#
#   bash launch/test.sh                       all but the slow ones
#   bash launch/test.sh -m slow               only the slow ones
#   bash launch/test.sh tests/latent -x       one room, up to the first failure
#
# VENV and PYTHON: see launch/environment.sh. Tests of real clips need $LATENTOMNI_ASSETS and say so
# when they are skipped.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Tests marked tpu_compile compile for TPU topologies, with libtpu and without a TPU.
export TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1
prepare_environment test
exec python -m pytest -q -n 2 --dist worksteal "$@"
