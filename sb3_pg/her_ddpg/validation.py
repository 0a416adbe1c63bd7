"""Checks of the options and environments of HERDDPG. Each error message says what to change."""

import copy
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pg.common.validation import check_choice, check_fraction, check_integer, check_non_negative, is_number
from sb3_pg.her_ddpg.buffers import (
    Array,
    HindsightReplayBuffer,
    check_rewards,
    compute_rewards,
    compute_terminated,
    has_compute_terminated,
)

KEYS = {"observation", "achieved_goal", "desired_goal"}
TARGET_UPDATES = ("cycle", "step")
# Arguments of the buffer that the algorithm sets from its own arguments.
BUFFER_ARGUMENTS = ("env", "n_steps", "gamma", "reward_range", "terminate_on_success")
# Used where neither action_noise nor action_noise_std is given.
ACTION_NOISE_STD = 0.2
NOT_VECTORISED = (
    "it must take [B, ...] arrays of goals and return one value per row; compute norms with axis=-1, use np.where and & "
    "instead of if and and"
)


class Options(Protocol):
    """The attributes of HERDDPG that are checked here."""

    observation_space: spaces.Space[Any]
    gamma: float | None
    train_freq: Any
    action_noise: Any
    action_noise_std: float | None
    replay_buffer_class: type[Any] | None
    replay_buffer_kwargs: dict[str, Any]
    policy_kwargs: dict[str, Any]
    reward_range: tuple[float, float] | None
    terminate_on_success: bool | None
    target_update: str

    @property
    def env(self) -> VecEnv | None:
        """Environments."""

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """As in SB3."""


class InfoAccessError(Exception):
    """Raised when ``compute_reward`` reads its ``info``."""


class UnreadableInfo(dict[str, Any]):
    """Placeholder for ``info``, which a replay buffer does not store."""

    def _refuse(self, *_: object) -> Any:
        raise InfoAccessError

    __getitem__ = __contains__ = __iter__ = get = keys = values = items = pop = setdefault = _refuse

    def __reduce__(self) -> tuple[type["UnreadableInfo"], tuple[()]]:
        # For environments in subprocesses. Pickling it as a dictionary would iterate over it.
        return UnreadableInfo, ()


def check_options(algorithm: Options) -> None:
    """
    Check all options that do not depend on the environments.

    :param algorithm: algorithm
    :raises ValueError: an option out of range, or mutually exclusive options
    """
    _check_space(algorithm)
    _check_ranges(algorithm)
    _check_cycle(algorithm)
    _check_buffer(algorithm)
    if algorithm.action_noise is not None and algorithm.action_noise_std is not None:
        raise ValueError(
            f"action_noise and action_noise_std={algorithm.action_noise_std} are mutually exclusive: set one of them to None"
        )
    if algorithm.reward_range is not None:
        _check_reward_range(algorithm.reward_range)
    elif algorithm.terminate_on_success:
        raise ValueError("terminate_on_success=True needs the maximum reward: pass reward_range=(minimum, maximum)")
    if algorithm.reward_range is not None and algorithm.gamma == 1:
        raise ValueError("gamma=1 leaves the targets unbounded: pass gamma < 1, or reward_range=None for no clipping")


def check_environment(algorithm: Options) -> None:
    """
    Check that the environment can recompute rewards, by a few examples. It is reset only if it needs a reset to do so.

    :param algorithm: algorithm with an environment
    :raises ValueError: it is not a goal environment, ``compute_reward`` is not vectorised or reads ``info``, its rewards are
        outside of ``reward_range``, or it is wrapped in ``VecNormalize``
    """
    env = algorithm.env
    assert env is not None
    normalize = algorithm.get_vec_normalize_env()
    if normalize is not None and (normalize.norm_obs or normalize.norm_reward):
        raise ValueError(
            "VecNormalize and HERDDPG are mutually exclusive: the policy normalises observations and goals, and rewards are "
            "recomputed without VecNormalize. Remove `normalize` from the yml file, or pass norm_obs=False, norm_reward=False"
        )
    if not env.has_attr("compute_reward"):
        raise ValueError(
            "the environment has no compute_reward(achieved_goal, desired_goal, info), which HERDDPG needs to relabel goals"
        )
    own = env.get_attr("observation_space", indices=[0])[0]
    for key in ("achieved_goal", "desired_goal"):
        if own[key].shape != algorithm.observation_space[key].shape:  # type: ignore[index]  # checked to be a Dict
            raise ValueError(
                f"the shape of {key} is changed from {own[key].shape} by a wrapper such as frame stacking, but not in "
                "compute_reward: remove the wrapper, or wrap each environment before vectorising"
            )
    try:
        _probe(algorithm, env, own)
    except AttributeError:
        # Some environments compute rewards with attributes that only reset() creates.
        env.reset()
        _probe(algorithm, env, own)


def default_gamma(env: VecEnv | None) -> float:
    """
    ``1 - 1/T`` for episodes of T steps, 0.98 for 50 (Plappert et al. 2018).

    :param env: environments
    :return: discount factor
    :raises ValueError: the environment has no time limit
    """
    length = None if env is None else max_episode_steps(env)
    if length is None or length < 2:
        raise ValueError(
            f"gamma=None stands for 1 - 1/T with the environment's time limit T, which is {length}: pass gamma, or wrap the "
            "environment in TimeLimit"
        )
    return 1 - 1 / length


def max_episode_steps(env: VecEnv) -> int | None:
    """
    :param env: environments
    :return: time limit of the first one; ``None`` if unknown
    """
    spec = env.get_attr("spec", indices=[0])[0] if env.has_attr("spec") else None
    candidates = [getattr(spec, "max_episode_steps", None)]
    for name in ("_max_episode_steps", "max_episode_steps", "max_steps"):
        if env.has_attr(name):
            candidates += env.get_attr(name, indices=[0])
    return next((int(value) for value in candidates if isinstance(value, (int, np.integer))), None)


def _check_space(algorithm: Options) -> None:
    space = algorithm.observation_space
    keys = set(space.spaces) if isinstance(space, spaces.Dict) else set()
    if keys != KEYS:
        raise ValueError(
            f"HERDDPG needs a goal environment, whose observations are dictionaries of exactly {', '.join(sorted(KEYS))}, not "
            f"{space}"
        )
    assert isinstance(space, spaces.Dict)
    if space["achieved_goal"].shape != space["desired_goal"].shape:
        raise ValueError(f"achieved and desired goals must have the same shape, not those of {space}")


def _check_ranges(algorithm: Options) -> None:
    for name in ("tau", "random_eps", "gamma"):
        check_fraction(name, getattr(algorithm, name))
    for name in ("action_l2", "action_noise_std"):
        if getattr(algorithm, name) is not None or name == "action_l2":
            check_non_negative(name, getattr(algorithm, name))
    for name, minimum in (
        ("buffer_size", 1),
        ("batch_size", 1),
        ("n_steps", 1),
        ("learning_starts", 0),
        ("gradient_steps", -1),
    ):
        check_integer(name, getattr(algorithm, name), minimum)
    if algorithm.terminate_on_success not in (None, False, True):
        raise ValueError(f"terminate_on_success={algorithm.terminate_on_success!r} must be True, False or None")


def _check_cycle(algorithm: Options) -> None:
    check_choice("target_update", algorithm.target_update, TARGET_UPDATES)
    frequency = algorithm.train_freq
    number = frequency.frequency if isinstance(frequency, TrainFreq) else frequency
    number = number[0] if isinstance(number, tuple) and len(number) == 2 else number
    if not (isinstance(number, int) and is_number(number) and number >= 1):
        raise ValueError(f'train_freq={frequency!r} must be a positive number of steps, or a pair such as (2, "episode")')


def _check_buffer(algorithm: Options) -> None:
    buffer_class = algorithm.replay_buffer_class
    if buffer_class is not None and not issubclass(buffer_class, HindsightReplayBuffer):
        raise ValueError(
            f"replay_buffer_class={buffer_class.__name__} does not support HERDDPG: use None, or a subclass of "
            "sb3_pg.her_ddpg.HindsightReplayBuffer"
        )
    for name in BUFFER_ARGUMENTS:
        if name in algorithm.replay_buffer_kwargs:
            raise ValueError(f"replay_buffer_kwargs[{name!r}] is set by HERDDPG itself: use its own argument instead")
    if "normalize_inputs" in algorithm.policy_kwargs:
        raise ValueError("policy_kwargs['normalize_inputs'] is set by HERDDPG itself: use normalize_inputs instead")


def _check_reward_range(reward_range: object) -> None:
    is_pair = isinstance(reward_range, tuple) and len(reward_range) == 2 and all(map(is_number, reward_range))
    if not is_pair or not reward_range[0] < reward_range[1]:  # type: ignore[index]  # a pair
        raise ValueError(f"reward_range={reward_range!r} must be (minimum, maximum), or None for targets without clipping")


def _probe(algorithm: Options, env: VecEnv, space: spaces.Dict) -> None:
    """Compare rewards in a batch with rewards one by one, for two achieved goals and two that probably were not achieved."""
    achieved, desired = _some_goals(space)
    _compare(env, "compute_reward", achieved, desired)
    check_rewards(compute_rewards(env, achieved, desired), algorithm.reward_range)
    if algorithm.terminate_on_success is None and has_compute_terminated(env):
        _compare(env, "compute_terminated", achieved, desired)


def _compare(env: VecEnv, method: str, achieved: Array, desired: Array) -> None:
    try:
        single = [_ask(env, method, a, d, UnreadableInfo()) for a, d in zip(achieved, desired, strict=True)]
    except (ValueError, AttributeError):
        raise
    except Exception as error:
        raise ValueError(
            f"the environment's {method} fails for goals of its own space: {type(error).__name__}: {error}"
        ) from error
    one_by_one = np.array([float(np.asarray(answer).item()) for answer in single])
    try:
        if method == "compute_reward":
            answer = _ask(env, method, achieved, desired, [UnreadableInfo() for _ in achieved])
            together = np.asarray(answer, dtype=np.float64).reshape(len(achieved))
        else:
            together = compute_terminated(env, achieved, desired).astype(np.float64)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"the environment's {method} is not vectorised: {NOT_VECTORISED}. The error was: {error}") from error
    if not np.allclose(together, one_by_one, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ValueError(
            f"the environment's {method} is not vectorised: {NOT_VECTORISED}. For {len(achieved)} pairs of goals it returned "
            f"{together} in a batch and {one_by_one} one by one"
        )


def _ask(env: VecEnv, method: str, achieved: Array, desired: Array, info: Any) -> Any:
    try:
        return env.env_method(method, achieved, desired, info, indices=[0])[0]
    except InfoAccessError:
        raise ValueError(
            f"the environment's {method} reads its `info`, which is not available for relabelled goals: it must depend on "
            "nothing but the achieved and desired goals. Move whatever else it needs into the goals"
        ) from None
    except (EOFError, ConnectionError):
        raise ValueError(
            f"{method} failed in the subprocess of an environment, which printed the cause: it must be vectorised and must "
            f"not read `info` ({NOT_VECTORISED})"
        ) from None


def _some_goals(space: spaces.Dict) -> tuple[Array, Array]:
    """Random achieved and desired goals, ``[4, ...]`` each, of which the first two pairs are equal."""
    achieved_space, desired_space = (copy.deepcopy(space[key]) for key in ("achieved_goal", "desired_goal"))
    achieved_space.seed(0)
    desired_space.seed(1)
    achieved = np.stack([np.asarray(achieved_space.sample()) for _ in range(4)])
    desired = np.stack([*achieved[:2], *(np.asarray(desired_space.sample()) for _ in range(2))]).astype(achieved.dtype)
    return achieved, desired
