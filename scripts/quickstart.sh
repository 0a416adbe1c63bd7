#!/usr/bin/env bash
# From a fresh checkout to a trained VPG: set up .venv (once), train with the RL Zoo's own command, evaluate, plot the learning curve.
# PYTHON=python3.12 selects the Python version, SEED=3 the seed of training.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

venv=.venv
stamp=$venv/.sb3-pg-quickstart
python=$(find_python)
# Everything that determines what is installed, and where. The sources are installed in place (-e), so they do not matter.
wanted=$(cat constraints.txt setup.cfg setup.py pyproject.toml | cksum)
wanted+=" $("$python" -c 'import sys; print(sys.base_prefix, sys.version.split()[0])') $PWD"

# The stamp file exists from the start, so that a foreign folder can be distinguished from an interrupted set-up. Its content is
# written when everything is installed. The old folder is renamed first, in case its removal is interrupted.
if [[ ! -e $stamp || $(<"$stamp") != "$wanted" ]]; then
    [[ ! -e $venv || -e $stamp ]] || die "$PWD/$venv was not made by this script and is left alone; move it away and try again"
    echo "== Setting up $PWD/$venv (once, a minute or two) =="
    rm -rf "$venv-old"
    [[ ! -e $venv ]] || mv "$venv" "$venv-old"
    rm -rf "$venv-old"
    mkdir "$venv"
    touch "$stamp"
    # setuptools warns of every editable installation.
    PYTHONWARNINGS=ignore create_venv "$python" "$venv" -e . matplotlib
    echo "$wanted" >"$stamp"
fi
# The command below is the same as in the zoo's manual.
export PATH="$PWD/$venv/bin:$PATH"

# Several threads slow down networks of this size, up to tenfold on a busy machine.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

echo "== Training =="
python -m rl_zoo3.train --algo vpg --env CartPole-v1 -P --seed "${SEED:-1}"

echo "== Result =="
newest='from rl_zoo3.utils import get_latest_run_id; print(get_latest_run_id("logs/vpg", "CartPole-v1"))'
run=logs/vpg/CartPole-v1_$(python -c "$newest")
python scripts/evaluate.py "$run" --episodes 20
python scripts/plot_learning_curve.py "$run" --output "$PWD/$run/learning_curve.png"
