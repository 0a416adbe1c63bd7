#!/usr/bin/env bash
# The checks that are too long for scripts/test.sh, to be run by hand: the tests with the marker `bench`, and SB3's own suite with our
# classes. In an environment of its own that is removed at the end. Arguments go to pytest: scripts/bench.sh -k study
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

python=$(find_python)
work=$(mktemp -d "$PWD/.venv-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

create_venv "$python" "$work/venv" "$PWD[tests,mujoco]"
export PATH="$work/venv/bin:$PATH" PYTHONHASHSEED=0
pytest -m bench --durations 15 "$@" </dev/null
scripts/sb3_suite.sh
