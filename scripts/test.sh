#!/usr/bin/env bash
# Runs the tests in an environment of their own; arguments go to pytest, for example: scripts/test.sh -k macs
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_environment.sh
set_up_environment test
python -m pytest "$@"
