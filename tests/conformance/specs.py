"""
Specification of each algorithm of the registry: the table over which the tests of common behaviour are parametrised.

A new algorithm adds a row to :data:`SPECS`. Importing this module imports neither torch nor Stable-Baselines3.
"""

import pkgutil
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import DummyVecEnv

Options = dict[str, Any]

ARRAYS = ("discrete", "multi_discrete", "multi_binary", "box")
VECTORS_AND_IMAGES = (*ARRAYS, "image", "dict", "dict_image")
_NETWORK: Options = {"net_arch": [8]}


@dataclass(frozen=True)
class Spec:
    """
    Specification of one algorithm.

    :param key: name in the zoo
    :param small: arguments of a small model in a registered environment
    :param options: further arguments of the models in :meth:`make`
    :param peer: SB3's class for comparison, ``module:name``
    :param peer_options: arguments of SB3's class in :meth:`make_peer`
    :param variants: name -> options of the algorithm with which everything must work as well
    :param on_policy: whether it learns from rollouts instead of a replay buffer
    :param actions: keys of ``envs.ACTION_SPACES``
    :param observations: keys of ``envs.OBSERVATION_SPACES``, or ``"goal"``, ``"goal_bits"``, ``"goal_image"``
    :param observation_options: kind of observation -> arguments that it requires
    :param sde: whether it supports generalised state-dependent exploration
    :param normalizable: whether it supports ``VecNormalize``
    :param stackable: whether it supports ``VecFrameStack``
    :param randomizes: whether ``predict`` samples actions by default
    :param n_envs: number of environments of the models in :meth:`make`
    :param trained: prefixes of parameter names; for each, some of the parameters must change
    :param optimizers: attributes of the model that hold its optimizers
    :param logged: names logged under ``train/`` with the first kind of action
    """

    key: str
    small: Options
    peer: str
    peer_options: Options = field(default_factory=dict)
    options: Options = field(default_factory=dict)
    variants: dict[str, Options] = field(default_factory=dict)
    on_policy: bool = False
    actions: tuple[str, ...] = ("box",)
    observations: tuple[str, ...] = VECTORS_AND_IMAGES
    observation_options: dict[str, Options] = field(default_factory=dict)
    sde: bool = False
    normalizable: bool = True
    stackable: bool = True
    randomizes: bool = True
    n_envs: int = 3
    trained: tuple[str, ...] = ("",)
    optimizers: tuple[str, ...] = ("policy.optimizer",)
    logged: frozenset[str] = frozenset()

    @property
    def free(self) -> bool:
        """Whether it supports environments without goals."""
        return "box" in self.observations

    @cached_property
    def algorithm(self) -> Any:
        """Class of the algorithm."""
        from sb3_pg.registry import ALGOS

        return ALGOS[self.key].load_class()

    @cached_property
    def peer_class(self) -> Any:
        """SB3's class for comparison."""
        return pkgutil.resolve_name(self.peer)

    @property
    def observation(self) -> str:
        """Simplest kind of observation."""
        return "box" if self.free else self.observations[0]

    def envs(self, n_envs: int | None = None, **kwargs: Any) -> "DummyVecEnv":
        """
        :param n_envs: number of environments; by default that of the specification
        :param kwargs: arguments of :func:`build_env`
        :return: monitored environments
        """
        from stable_baselines3.common.monitor import Monitor
        from stable_baselines3.common.vec_env import DummyVecEnv

        kwargs = {"observation": self.observation, "action": self.actions[0], **kwargs}
        return DummyVecEnv([lambda: Monitor(build_env(**kwargs))] * (n_envs or self.n_envs))

    def make(self, env: Any = None, cls: Any = None, **kwargs: Any) -> Any:
        """
        :param env: environments, :meth:`envs` by default
        :param cls: class of the model, such as a subclass
        :param kwargs: further arguments
        :return: a small model
        """
        return self._build(cls or self.algorithm, self.options, env, kwargs)

    def make_peer(self, env: Any = None, **kwargs: Any) -> Any:
        """
        :param env: environments, :meth:`envs` by default
        :param kwargs: further arguments
        :return: a small model of SB3's class
        """
        names = {"replay_buffer_class"} & set(self.peer_options)
        resolved = {name: pkgutil.resolve_name(self.peer_options[name]) for name in names}
        return self._build(self.peer_class, {**self.peer_options, **resolved}, env, kwargs)

    def _build(self, cls: Any, options: Options, env: Any, kwargs: Options) -> Any:
        env = self.envs() if env is None else env
        network = {**_NETWORK, **options.get("policy_kwargs", {}), **(kwargs.get("policy_kwargs") or {})}
        policy = kwargs.pop("policy", None) or policy_for(env.observation_space)
        return cls(policy, env, **{"seed": 0, "device": "cpu", **options, **kwargs, "policy_kwargs": network})


def build_env(observation: str, action: str, truncate: bool = False) -> Any:
    """
    :param observation: kind of observation, see :class:`Spec`
    :param action: kind of action; goal environments have boxes
    :param truncate: whether a time limit ends the episodes; in goal environments it always does
    :return: environment with episodes of four steps, or eight steps with goals
    """
    import gymnasium as gym
    from envs import MatchEnv
    from goal_envs import PointGoalEnv
    from stable_baselines3.common.envs import BitFlippingEnv

    if not observation.startswith("goal"):
        return MatchEnv(observation, action, truncate=truncate)
    if observation == "goal":
        return gym.wrappers.TimeLimit(PointGoalEnv(), 8)
    return BitFlippingEnv(n_bits=4, continuous=True, max_steps=8, image_obs_space=observation == "goal_image")


def policy_for(space: Any) -> str:
    """
    :param space: observation space
    :return: name of the policy
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if len(space.shape or ()) == 3 else "MlpPolicy"


_ROLLOUT_LOG = {"learning_rate", "n_updates", "entropy_loss", "policy_loss", "grad_norm", "value_loss", "explained_variance"}
_EPISODES: Options = {"n_steps": None, "n_episodes": 6}
_ON_POLICY: Options = {"learning_starts": None, "batch_size": None, "buffer_size": None, "on_policy": True, "train_freq": 6}

SPECS: dict[str, Spec] = {
    spec.key: spec
    for spec in [
        Spec(
            key="vpg",
            small={"policy": "MlpPolicy", "env": "CartPole-v1", "n_steps": 32},
            options={"n_steps": 6},
            peer="stable_baselines3:A2C",
            peer_options={"n_steps": 6},
            variants={
                "joint": {"n_value_updates": 0, "advantage_estimator": "n_step", "return_steps": 2},
                "critic_first": {"critic_first": True, "value_batch_size": 4, "n_value_updates": 3},
                "reinforce": {**_EPISODES, "advantage_estimator": "total_return", "baseline": "none"},
                "mean": {**_EPISODES, "advantage_estimator": "total_return", "baseline": "mean"},
                "optimal": {**_EPISODES, "advantage_estimator": "reward_to_go", "baseline": "optimal"},
            },
            on_policy=True,
            actions=("discrete", "multi_discrete", "multi_binary", "box"),
            sde=True,
            optimizers=("policy.optimizer", "value_optimizer"),
            logged=frozenset(_ROLLOUT_LOG | {"weight_std", "approx_kl", "value_learning_rate"}),
        ),
        Spec(
            key="nstep_a2c",
            small={"policy": "MlpPolicy", "env": "CartPole-v1"},
            options={"n_steps": 6},
            peer="stable_baselines3:A2C",
            peer_options={"n_steps": 6},
            variants={
                "two_rates": {"return_steps": 2, "value_learning_rate": 1e-2},
                "gae": {"gae_lambda": 0.9, "normalize_advantage": True, "use_rms_prop": "tf"},
            },
            on_policy=True,
            actions=("discrete", "multi_discrete", "multi_binary", "box"),
            sde=True,
            logged=frozenset(_ROLLOUT_LOG),
        ),
        Spec(
            key="svg0",
            small={"policy": "MlpPolicy", "env": "Pendulum-v1", "learning_starts": 50, "buffer_size": 1000, "batch_size": 16},
            options={"learning_starts": 10, "buffer_size": 90, "batch_size": 16},
            peer="stable_baselines3:SAC",
            peer_options={"learning_starts": 10, "buffer_size": 90, "batch_size": 16},
            variants={
                "on_policy": _ON_POLICY,
                "sac": {"td_lambda": 0.0, "n_critics": 2, "ent_coef": "auto"},
                "likelihood_ratio": {"gradient_estimator": "likelihood_ratio", "squash_output": False},
                "full": {"covariance": "full", "ent_coef": 0.1, "n_action_samples": 3, "off_policy_correction": "none"},
            },
            trained=("actor.", "critic.", "critic_target."),
            optimizers=("actor.optimizer", "critic.optimizer"),
            logged=frozenset({"learning_rate", "n_updates", "actor_loss", "critic_loss", "std", "importance_ratio"}),
        ),
        Spec(
            key="her_ddpg",
            small={
                "policy": "MultiInputPolicy",
                "env": "PointGoal-v0",
                "batch_size": 32,
                "gradient_steps": 2,
                "policy_kwargs": {"net_arch": [16]},
            },
            options={"batch_size": 16, "gradient_steps": 2, "train_freq": 1, "buffer_size": 1000},
            peer="stable_baselines3:DDPG",
            peer_options={
                "replay_buffer_class": "stable_baselines3:HerReplayBuffer",
                "learning_starts": 20,
                "batch_size": 16,
                "gradient_steps": 2,
                "buffer_size": 1000,
            },
            variants={
                "episodes": {"train_freq": (2, "episode")},
                "step": {"target_update": "step", "n_steps": 3},
                "plain": {"normalize_inputs": False, "action_l2": 0.0, "reward_range": None, "gamma": 0.9},
            },
            observations=("goal", "goal_bits", "goal_image"),
            observation_options={name: {"terminate_on_success": True} for name in ("goal_bits", "goal_image")},
            normalizable=False,
            stackable=False,
            randomizes=False,
            n_envs=2,
            trained=("actor.", "critic.", "actor_target.", "critic_target."),
            optimizers=("actor.optimizer", "critic.optimizer"),
            logged=frozenset({"learning_rate", "n_updates", "actor_loss", "critic_loss", "q_value"}),
        ),
    ]
}
