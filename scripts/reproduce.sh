#!/usr/bin/env bash
# Reproduces a table of the paper, or one of ours: bash scripts/reproduce.sh TABLE [--smoke] [options] [KEY=VALUE ...]
# --list shows the tables, --help the options; `lite-transformer reproduce` does the work.
set -euo pipefail

if ! command -v lite-transformer >/dev/null; then
    # shellcheck disable=SC1091
    source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
    set_up_environment
fi
exec lite-transformer reproduce "$@"
