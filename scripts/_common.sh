# shellcheck shell=bash
# What the scripts beside this file share. It is sourced, never run, and leaves the caller in the root of the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Whatever the caller's shell says, only what these scripts install is meant to be imported.
unset PYTHONPATH PYTHONHOME SB3_PG_NO_AUTOREGISTER
export PIP_DISABLE_PIP_VERSION_CHECK=1
# People see the progress of the downloads, log files only what goes wrong.
[[ -t 1 ]] || export PIP_QUIET=1

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Print the Python to build an environment with: $PYTHON, or else the first one on the PATH that is new enough. Never that of an
# active environment, which may be the very one that is about to be replaced.
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

# create_venv PYTHON FOLDER REQUIREMENT...: a new environment with exactly the versions of constraints.txt.
create_venv() {
    local python=$1 venv=$2
    shift 2
    "$python" -m venv "$venv" || die "'$python -m venv' failed; Debian and Ubuntu need the package python3-venv for it"
    # A bundled pip may be too old for today's wheels. What builds our package is pinned too, hence no build isolation.
    "$venv/bin/python" -m pip install -c constraints.txt pip setuptools wheel
    "$venv/bin/python" -m pip install -c constraints.txt --no-build-isolation "$@"
}
