# shellcheck shell=bash
# Common code of the scripts in this folder. Source it; it changes to the root of the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Only packages that these scripts install may be imported, independent of the caller's environment.
unset PYTHONPATH PYTHONHOME SB3_PG_NO_AUTOREGISTER
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Download progress on terminals only; log files contain errors only.
[[ -t 1 ]] || export PIP_QUIET=1

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Print the Python for a new environment: $PYTHON, or the first one on the PATH that is new enough. It is never that of an
# active environment, which may be the one to be replaced.
find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", None) or sys.executable)'
        return
    done
    die "needs Python 3.10 or newer (looked for: ${candidates[*]}); name one, for example: PYTHON=python3.12 $0"
}

# create_venv PYTHON FOLDER REQUIREMENT...: create an environment with the versions of constraints.txt.
create_venv() {
    local python=$1 venv=$2
    shift 2
    "$python" -m venv "$venv" || die "'$python -m venv' failed; Debian and Ubuntu need the package python3-venv for it"
    # A bundled pip may be too old for current wheels. The build tools are pinned too, hence no build isolation.
    "$venv/bin/python" -m pip install -c constraints.txt pip setuptools wheel
    "$venv/bin/python" -m pip install -c constraints.txt --no-build-isolation "$@"
}
