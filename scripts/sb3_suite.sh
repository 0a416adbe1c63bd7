#!/usr/bin/env bash
# Run Stable-Baselines3's own tests with our classes in place of SB3's, and print the tests that only ours fail. Exits with 1
# if one of them has no reason in scripts/sb3_suite.py. Run by hand, with the Python on the PATH, in which sb3_pg is installed.
# Arguments select pairs: scripts/sb3_suite.sh VPG SVG0-for-SAC
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

# Our class for SB3's class. Tests of a package that is not installed (ale_py) are skipped.
pairs=(NStepA2C-for-A2C VPG-for-A2C SVG0-for-SAC SVG0-for-DDPG HERDDPG-for-DDPG)
version=$(python -c 'import sb3_pg, stable_baselines3 as sb3; print(sb3.__version__)') ||
    die "sb3_pg is not installed for $(command -v python): activate its environment, or run scripts/quickstart.sh"
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD/scripts"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

python -m pip download --quiet --no-deps --no-binary stable-baselines3 --dest "$work" "stable-baselines3==$version"
tar -xf "$work"/stable_baselines3-*.tar.gz -C "$work"
# Only its tests: the package under test is the installed one.
suite=$(echo "$work"/stable_baselines3-*/tests)
cp "$suite/../pyproject.toml" "$work"

# run CLASS PATH RECORD ARGUMENT...: run the tests in which CLASS occurs, with the class at PATH in its place.
run() {
    local name=$1 path=$2 record=$3 files
    shift 3
    mapfile -t files < <(grep -lwE "$name" "$suite"/test_*.py)
    # Failures are expected: the comparison determines the exit code.
    (cd "$work" && python -m pytest -p sb3_suite -c pyproject.toml --rootdir "$work" -p no:cacheprovider -q --tb no --no-summary \
        -m "not expensive" -n "${PYTEST_WORKERS:-2}" --replace "$name=$path" --record "$record" "$@" "${files[@]}") || true
}

status=0
for pair in "${pairs[@]}"; do
    ours=${pair%-for-*} theirs=${pair#*-for-}
    [[ $# -eq 0 || " $* " == *" $pair "* || " $* " == *" $ours "* ]] || continue
    [[ -e $work/$theirs.json ]] || run "$theirs" "stable_baselines3:$theirs" "$work/$theirs.json"
    buffer=()
    [[ $ours != HERDDPG ]] || buffer=(--replace HerReplayBuffer=sb3_pg.her_ddpg:HindsightReplayBuffer)
    run "$theirs" "sb3_pg:$ours" "$work/$pair.json" --passed-in "$work/$theirs.json" "${buffer[@]}"
    python scripts/sb3_suite.py "$work/$theirs.json" "$work/$pair.json" "$pair" || status=1
done
exit $status
