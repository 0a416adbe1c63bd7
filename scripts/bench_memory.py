"""
Peak memory of training (resident set), compared with Stable-Baselines3; each measured in a process of its own.

    python scripts/bench_memory.py

``her``: a replay buffer with a million transitions of the size of FetchPush-v4 from 8 environments, and ten updates of 2048.
``rollout``: rollouts of 4000 steps of HalfCheetah-v5 from 8 environments.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

N_ENVS = 8
CAPACITY = 1_000_000
ROLLOUT = 4000


def train_her(ours: bool, n_steps: int = CAPACITY) -> int:
    """
    :param ours: whether to train HERDDPG; otherwise SB3's DDPG with its HerReplayBuffer
    :param n_steps: number of transitions to collect
    :return: number of steps taken
    """
    import gymnasium as gym
    import numpy as np
    from gymnasium import spaces
    from stable_baselines3 import DDPG, HerReplayBuffer
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_pg import HERDDPG

    class Still(gym.Env[dict[str, Any], Any]):
        """An environment with the spaces of FetchPush-v4 and constant state: the same memory, but fast steps."""

        def __init__(self) -> None:
            goal = spaces.Box(-np.inf, np.inf, (3,), np.float64)
            vector = spaces.Box(-np.inf, np.inf, (25,), np.float64)
            self.observation_space: Any = spaces.Dict({"observation": vector, "achieved_goal": goal, "desired_goal": goal})
            self.action_space = spaces.Box(-1, 1, (4,), np.float32)
            self.state = {key: space.sample() for key, space in self.observation_space.items()}

        def reset(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return self.state, {}

        def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:  # noqa: ARG002 # the interface
            return self.state, -1.0, False, False, {"is_success": 0.0}

        def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:  # noqa: ARG002 # the interface
            return -np.ones(np.shape(achieved_goal)[:-1], np.float32)

    env = make_vec_env(lambda: gym.wrappers.TimeLimit(Still(), 50), N_ENVS)
    # No updates during collection; they follow at the end.
    options: dict[str, Any] = {"buffer_size": CAPACITY, "learning_starts": n_steps + 1, "device": "cpu"}
    if ours:
        model: Any = HERDDPG("MultiInputPolicy", env, **options)
    else:
        options |= {"replay_buffer_class": HerReplayBuffer, "policy_kwargs": {"net_arch": [256, 256, 256]}}
        model = DDPG("MultiInputPolicy", env, train_freq=100, **options)
    model.learn(n_steps)
    model.train(10, 2048)
    return int(model.num_timesteps)


def train_rollout(ours: bool, n_steps: int = ROLLOUT) -> int:
    """
    :param ours: whether to train VPG; otherwise SB3's A2C
    :param n_steps: number of steps of a rollout, all environments together
    :return: number of steps taken
    """
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_pg import VPG

    env = make_vec_env("HalfCheetah-v5", N_ENVS)
    model: Any = (VPG if ours else A2C)("MlpPolicy", env, n_steps=n_steps // N_ENVS, device="cpu")
    model.learn(2 * n_steps)
    return int(model.num_timesteps)


CASES: dict[str, Callable[[bool], int]] = {"her": train_her, "rollout": train_rollout}


def peak() -> float:
    """
    :return: peak resident set of this process, in MiB
    :raises OSError: the operating system is not Linux
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("/proc/self/status has no VmHWM")
    return int(found[1]) / 1024


def measure(case: str, ours: bool) -> float:
    """
    :param case: key of ``CASES``
    :param ours: whether to measure our algorithm; otherwise SB3's
    :return: peak resident set of a new process, in MiB
    """
    command = [sys.executable, __file__, "--child", case, "sb3_pg" if ours else "SB3"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(output.split()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Measure and print a table.

    :param arguments: command-line arguments; ``None``: ``sys.argv[1:]``
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"cases to measure, of {', '.join(CASES)} (default: all)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        CASES[args.child[0]](args.child[1] == "sb3_pg")
        print(f"{peak():.1f}")
        return
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))} (available: {', '.join(CASES)})")
    print("| | SB3, MiB | sb3_pg, MiB |\n|---|---|---|")
    for case in args.cases or CASES:
        print(f"| {case} | {measure(case, False):,.0f} | {measure(case, True):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
