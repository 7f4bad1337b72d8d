#!/usr/bin/env bash
# Runs the tests in an environment of their own; arguments go to pytest, for example: scripts/test.sh -k macs
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_environment.sh
set_up_environment test
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # tiny models: threads only wait for each other
python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
