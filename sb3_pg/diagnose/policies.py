"""The policy to be measured: a new policy, or that of a saved model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pg.vpg.vpg import VPG

Environment = str | Callable[..., gym.Env[Any, Any]]

# Maximum number of environments that collect a batch.
_MAX_ENVIRONMENTS = 16
# Attributes of a saved model that are not needed. Schedules may not load under another Python version.
_UNUSED = {"learning_rate": 0.0, "lr_schedule": None, "clip_range": None, "clip_range_vf": None}


class SamplingConfig(NamedTuple):
    """
    Everything needed to sample gradient estimates, in this process or in a worker process.

    :param env: id of the environment, or a function that makes it
    :param env_kwargs: its keyword arguments
    :param vec_normalize: file with the statistics of a ``VecNormalize`` wrapper
    :param policy_class: class of the policy, or one of VPG's names for it
    :param policy_kwargs: keyword arguments of the policy
    :param use_sde: whether the policy explores by gSDE
    :param sde_sample_freq: number of steps between two samples of the gSDE noise, -1: one sample per estimate
    :param parameters: the policy's ``state_dict``, critic included, as arrays: tensors would be sent through shared memory
    :param gamma: discount factor
    :param n_episodes: episodes in an estimate
    :param discount_gradient: whether step t is weighted by ``gamma^t``
    """

    env: Environment
    env_kwargs: dict[str, Any]
    vec_normalize: Path | None
    policy_class: str | type[ActorCriticPolicy]
    policy_kwargs: dict[str, Any]
    use_sde: bool
    sde_sample_freq: int
    parameters: dict[str, npt.NDArray[Any]]
    gamma: float
    n_episodes: int
    discount_gradient: bool

    def make_environments(self, n_envs: int) -> VecEnv:
        """
        :param n_envs: number of environments
        :return: environments with the wrappers that VPG needs; the statistics of a ``VecNormalize`` are frozen
        """
        env: VecEnv = make_vec_env(self.env, n_envs, env_kwargs=self.env_kwargs)
        if self.vec_normalize is not None:
            normalize = VecNormalize.load(str(self.vec_normalize), env)
            normalize.training = False
            env = normalize
        return VPG._wrap_env(env)

    def make_model(self, env: VecEnv, **options: Any) -> VPG:
        """
        :param env: environments
        :param options: further arguments of ``VPG``
        :return: a ``VPG`` on the CPU with the policy's parameters
        :raises ValueError: VPG rejects the options
        """
        model = VPG(
            self.policy_class,
            env,
            gamma=self.gamma,
            policy_kwargs=dict(self.policy_kwargs),
            use_sde=self.use_sde,
            sde_sample_freq=self.sde_sample_freq,
            device="cpu",
            **options,
        )
        model.policy.load_state_dict({name: th.as_tensor(array) for name, array in self.parameters.items()})
        return model


@dataclass(frozen=True)
class Policy:
    """
    The policy to be measured.

    :param config: sampling configuration
    :param label: name for titles
    :param has_critic: whether it has a trained critic for the discount factor of the configuration
    """

    config: SamplingConfig
    label: str
    has_critic: bool


def new_policy(config: SamplingConfig, name: str | None, seed: int) -> Policy:
    """
    Initialise a policy.

    :param config: sampling configuration without policy
    :param name: policy alias of VPG, ``None``: by the observation space
    :param seed: seed of the initial parameters
    :return: the policy
    :raises ValueError: VPG does not support the environment or the policy
    """
    env = config.make_environments(1)
    name = _default_policy(env.observation_space) if name is None else name
    model = VPG(name, env, seed=seed, device="cpu")
    env.close()
    return Policy(config._replace(policy_class=name, parameters=state_arrays(model)), f"new {name}", has_critic=False)


def saved_policy(config: SamplingConfig, path: Path, gamma: float | None) -> Policy:
    """
    Load the policy of a saved VPG, A2C, PPO or other model with SB3's actor-critic policy.

    :param config: sampling configuration without policy and discount factor
    :param path: zip file of the model
    :param gamma: discount factor, ``None``: the model's own
    :return: the policy
    :raises ValueError: the file does not contain such a model, or the spaces do not match the environment
    """
    data, states, _ = load_from_zip_file(path, device="cpu", custom_objects=_UNUSED)
    policy_class = (data or {}).get("policy_class")
    if data is None or not isinstance(policy_class, type) or not issubclass(policy_class, ActorCriticPolicy):
        found = getattr(policy_class, "__name__", "something else")
        raise ValueError(f"{path} holds a {found}, but an actor-critic policy is needed, as saved by VPG, A2C and PPO")
    env = config.make_environments(1)
    try:
        check_for_correct_spaces(env, data["observation_space"], data["action_space"])
    except ValueError as error:
        raise ValueError(f"{path} does not fit {env_name(config.env)}: {error}") from error
    finally:
        env.close()
    own_gamma = float(data["gamma"])
    parameters: dict[str, th.Tensor] = states["policy"]  # type: ignore[assignment]  # SB3 declares it as a tensor
    config = config._replace(
        policy_class=policy_class,
        # Without optimizer options: a critic that is fitted for the measurement has an optimizer of its own.
        policy_kwargs={key: value for key, value in data["policy_kwargs"].items() if not key.startswith("optimizer")},
        use_sde=bool(data.get("use_sde", False)),
        sde_sample_freq=int(data.get("sde_sample_freq", -1)),
        parameters={name: tensor.numpy() for name, tensor in parameters.items()},
        gamma=own_gamma if gamma is None else gamma,
    )
    # Only VPG has a `baseline`; A2C and PPO always train their critic.
    trained = data.get("baseline", "value") == "value"
    return Policy(config, path.name, has_critic=trained and config.gamma == own_gamma)


def state_arrays(model: VPG) -> dict[str, npt.NDArray[Any]]:
    """
    :param model: the model
    :return: copy of the ``state_dict`` of its policy, as arrays
    """
    return {name: np.array(tensor.cpu().numpy()) for name, tensor in model.policy.state_dict().items()}


def env_name(env: Environment) -> str:
    """
    :param env: id of an environment, or a function that makes it
    :return: name of the environment
    """
    return env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)


def number_of_environments(n_episodes: int) -> int:
    """
    :param n_episodes: episodes in an estimate
    :return: number of environments that collect them, the same number of episodes each
    """
    return max(n for n in range(1, _MAX_ENVIRONMENTS + 1) if n_episodes % n == 0)


def _default_policy(space: gym.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"
