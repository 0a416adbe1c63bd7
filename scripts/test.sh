#!/usr/bin/env bash
# All checks: lint, format, strict types, and the tests against the installed package.
# Runs in a new virtual environment that is removed at the end. Arguments are passed on to pytest: scripts/test.sh -k returns
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

python=$(find_python)
work=$(mktemp -d "$PWD/.venv-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

echo "== install (Python $("$python" -c 'import platform; print(platform.python_version())')) =="
# Built from a copy, so that no files of earlier builds in the checkout get into the package.
mkdir "$work/source"
tar -cf - --exclude='./.git' --exclude='./.venv*' --exclude='./logs' --exclude='./build' --exclude='./dist' --exclude='*.egg-info' . |
    tar -xf - -C "$work/source"
create_venv "$python" "$work/venv" "$work/source[tests,mujoco]"
export PATH="$work/venv/bin:$PATH"

echo "== lint and format =="
ruff check .
ruff format --check .

echo "== types =="
mypy sb3_pg scripts tests

echo "== tests =="
# The workers must generate the same test ids, even if these depend on the order of a set.
export PYTHONHASHSEED=0
pytest --installed -m 'not bench' -n "${PYTEST_WORKERS:-2}" --dist worksteal --durations 15 "$@" </dev/null
