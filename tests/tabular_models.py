"""Models of the on-policy algorithms whose networks are tables, for learning tests."""

import os
from typing import Any

import numpy as np
import torch as th
from model_checks import Model
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

# Set the environment variable SEEDS=25 to run 25 seeds of each test.
SEEDS = range(int(os.environ.get("SEEDS", "1")))
GAMMA = 0.9


def tabular(
    algorithm: type[Model], env: VecEnv, seed: int, optimizer_class: type[th.optim.Optimizer] | None = None, **kwargs: Any
) -> Any:
    """
    Build a model with one logit for each state and action and one value for each state, so that networks play no role.

    :param algorithm: class of the model
    :param env: environments with discrete observations
    :param seed: seed of the model
    :param optimizer_class: class of the optimizer, the algorithm's default if not given
    :param kwargs: further arguments
    :return: the model
    """
    policy_kwargs: dict[str, Any] = {"net_arch": {"pi": [], "vf": []}, "ortho_init": False}
    if optimizer_class is not None:
        policy_kwargs["optimizer_class"] = optimizer_class
    return algorithm("MlpPolicy", env, gamma=GAMMA, seed=seed, device="cpu", policy_kwargs=policy_kwargs, **kwargs)


def action_probabilities(model: Model, n_states: int) -> np.ndarray:
    """
    Evaluate the policy.

    :param model: model with discrete observations and actions
    :param n_states: number of states
    :return: ``[n_states, A]``
    """
    with th.no_grad():
        distribution: Any = model.policy.get_distribution(th.arange(n_states)).distribution
    return np.asarray(distribution.probs)


def values(model: Model, n_states: int) -> np.ndarray:
    """
    Evaluate the critic.

    :param model: model with discrete observations
    :param n_states: number of states
    :return: ``[n_states]``
    """
    with th.no_grad():
        return np.asarray(model.policy.predict_values(th.arange(n_states)).flatten())


class CutsLookLikeEnds(VecEnvWrapper):
    """Reports truncation as termination."""

    def reset(self) -> Any:
        """
        Reset.

        :return: first observations
        """
        return self.venv.reset()

    def step_wait(self) -> Any:
        """
        Step.

        :return: results of the wrapped environments, without the truncation flag
        """
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards, dones, [{**info, "TimeLimit.truncated": False} for info in infos]
