# Sourced by quickstart.sh and test.sh: defines set_up_environment [EXTRA], which leaves a Python environment active that
# holds this package (with the extra, such as test). It takes the active virtual environment, or makes .venv here.

python_for_venv() {
    local name
    for name in python3.11 python3.12 python3 python; do
        if command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "Python 3.11 or 3.12 is needed and was not found. Install one of them, then run this script again." >&2
    return 2
}

set_up_environment() {
    local root extra="${1:-}" python stamp
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    if [[ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]]; then
        if [[ ! -x "$root/.venv/bin/pip" ]]; then
            python="$(python_for_venv)" || return 2
            echo "Making a virtual environment in .venv with $("$python" --version)"
            rm -rf "$root/.venv"
            if ! "$python" -m venv "$root/.venv"; then
                rm -rf "$root/.venv"
                echo "$python cannot make virtual environments. On Debian or Ubuntu: apt install $python-venv" >&2
                return 2
            fi
        fi
        # shellcheck disable=SC1091
        source "$root/.venv/bin/activate"
    fi
    # Installed once for this checkout, this packaging and this extra: then there is nothing to do.
    stamp="$(python -c 'import sys; print(sys.prefix)')/.lite-transformer-$(
        cd "$root/lite_transformer/edge/native" # what is compiled
        { echo "$root $extra"; cat "$root/setup.py" "$root/pyproject.toml" ./*.cpp ./*.h ./*.inl; } | cksum | tr -d ' \t'
    )"
    if [[ ! -e "$stamp" ]]; then
        if ! python -c 'import torch' 2>/dev/null; then
            echo "Installing PyTorch (the longest step)"
            python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0'
        fi
        echo "Installing lite_transformer${extra:+ with what its $extra extra needs}"
        python -m pip install --quiet --disable-pip-version-check --editable "$root${extra:+[$extra]}"
        touch "$stamp"
    fi
}
