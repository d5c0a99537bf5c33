#!/usr/bin/env bash
# The paper's ablations in a small world, from nothing but Python 3.11. Arguments go to the study:
#
#   bash launch/ablate.sh                        main rows, three seeds: some hours on two cores
#   bash launch/ablate.sh --rows silent_main     other groups, or rows by name
#   bash launch/ablate.sh --help
#
# VENV and PYTHON: see launch/environment.sh. What it makes is in runs/ablate; stopped, it goes on.
# What came of each row goes to docs/study, and from there into the tables of docs/results.md.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment data report
exec python -m launch.ablate "$@"
