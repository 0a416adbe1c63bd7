"""Checks of the options of VPG. Each message says what to change."""

from typing import Any, Protocol

from gymnasium import spaces

from sb3_pg.common.validation import check_choice, check_fraction, check_integer, check_max_grad_norm, check_return_steps

ADVANTAGE_ESTIMATORS = ("total_return", "reward_to_go", "n_step", "gae")
BASELINES = ("none", "mean", "optimal", "value")
ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

# Defaults of arguments that depend on other options.
GAE_LAMBDA = 0.95
N_STEPS = 512
N_VALUE_UPDATES = 10


class Options(Protocol):
    """The checked attributes, which are arguments of VPG."""

    action_space: spaces.Space[Any]
    advantage_estimator: str
    baseline: str
    n_envs: int
    n_steps: int | None
    n_episodes: int | None
    gamma: float
    gae_lambda: Any  # None unless the estimator uses it
    vf_coef: Any  # None unless there is a joint loss
    max_grad_norm: Any  # None: no clipping
    normalize_advantage: bool
    return_steps: int | None
    discount_gradient: bool
    n_value_updates: int | None
    value_batch_size: int | None
    critic_first: bool

    @property
    def uses_critic(self) -> bool:
        """Whether a critic is learned."""


def resolve_n_steps(vpg: Options) -> int | None:
    """
    :param vpg: algorithm
    :return: length of a rollout, ``None`` with whole episodes
    """
    return N_STEPS if vpg.n_steps is None and vpg.n_episodes is None else vpg.n_steps


def resolve_n_value_updates(vpg: Options) -> int:
    """
    :param vpg: algorithm
    :return: number of critic steps per batch by the critic's own optimizer
    """
    if not vpg.uses_critic:
        return 0
    if vpg.n_value_updates is None:
        # The weight of the joint loss selects the joint loss.
        return N_VALUE_UPDATES if vpg.vf_coef is None else 0
    return vpg.n_value_updates


def check_options(vpg: Options) -> None:
    """
    Check everything that does not depend on the number of environments.

    :param vpg: algorithm
    :raises ValueError: an option is out of range, or options conflict
    """
    if not isinstance(vpg.action_space, ACTION_SPACES):
        names = ", ".join(space.__name__ for space in ACTION_SPACES)
        raise ValueError(f"VPG supports the action spaces {names}, not {vpg.action_space}")
    check_choice("advantage_estimator", vpg.advantage_estimator, ADVANTAGE_ESTIMATORS)
    check_choice("baseline", vpg.baseline, BASELINES)
    _check_ranges(vpg)
    _check_estimator(vpg)
    _check_critic(vpg)


def check_environments(vpg: Options) -> None:
    """
    Check what depends on the number of environments, which a loaded model may change.

    :param vpg: algorithm
    :raises ValueError: ``n_episodes`` is not a multiple of it, or a rollout is too small
    """
    if vpg.n_episodes is not None:
        if vpg.n_episodes % vpg.n_envs != 0:
            raise ValueError(
                f"n_episodes={vpg.n_episodes} must be a multiple of the number of environments ({vpg.n_envs}): each "
                "contributes the same number of episodes, since keeping those that finish first is biased towards short ones"
            )
        return
    assert vpg.n_steps is not None
    n_samples = vpg.n_steps * vpg.n_envs
    if vpg.normalize_advantage and n_samples < 2:
        raise ValueError("normalize_advantage=True needs at least two steps in a batch: raise n_steps, or use False")
    if vpg.value_batch_size is not None and vpg.value_batch_size > n_samples:
        raise ValueError(
            f"value_batch_size={vpg.value_batch_size} is larger than n_steps * n_envs = {n_samples}: lower it or raise n_steps"
        )


def _check_ranges(vpg: Options) -> None:
    check_fraction("gamma", vpg.gamma)
    if vpg.gae_lambda is not None:
        check_fraction("gae_lambda", vpg.gae_lambda)
    for name, minimum in (
        ("n_steps", 1),
        ("n_episodes", 1),
        ("return_steps", 1),
        ("n_value_updates", 0),
        ("value_batch_size", 1),
    ):
        value = getattr(vpg, name)
        if value is not None:
            check_integer(name, value, minimum)
    check_max_grad_norm(vpg.max_grad_norm)


def _check_estimator(vpg: Options) -> None:
    estimator, baseline = vpg.advantage_estimator, vpg.baseline
    if vpg.n_steps is not None and vpg.n_episodes is not None:
        raise ValueError(f"n_steps={vpg.n_steps} and n_episodes={vpg.n_episodes} are mutually exclusive: set one to None")
    if estimator == "total_return" and baseline == "value":
        raise ValueError(
            "advantage_estimator='total_return' cannot subtract a state value: use baseline='none', 'mean' or "
            "'optimal', or advantage_estimator='reward_to_go'"
        )
    if estimator == "total_return" and vpg.discount_gradient:
        raise ValueError(
            "advantage_estimator='total_return' already gives the gradient of the discounted objective: use "
            "discount_gradient=False"
        )
    if estimator in ("n_step", "gae") and baseline != "value":
        raise ValueError(f"advantage_estimator={estimator!r} bootstraps with a critic: use baseline='value', not {baseline!r}")
    if baseline != "value" and vpg.n_episodes is None:
        raise ValueError(
            f"baseline={baseline!r} has no critic to bootstrap a rollout that is cut by n_steps: collect whole episodes with "
            "n_episodes, or use baseline='value'"
        )
    if baseline in ("mean", "optimal") and vpg.n_episodes == 1:
        raise ValueError(
            f"baseline={baseline!r} is computed from the other episodes of the batch: n_episodes must be at least 2"
        )
    if (estimator == "n_step") != (vpg.return_steps is not None):
        raise ValueError(
            f"advantage_estimator={estimator!r} and return_steps={vpg.return_steps}: return_steps is the look-ahead of "
            "'n_step', where it is required; otherwise it must be None"
        )
    if vpg.return_steps is not None:
        check_return_steps(vpg.return_steps, resolve_n_steps(vpg))
    if estimator != "gae" and vpg.gae_lambda is not None:
        raise ValueError(
            f"gae_lambda={vpg.gae_lambda} has no effect with advantage_estimator={estimator!r}: use 'gae', or gae_lambda=None"
        )


def _check_critic(vpg: Options) -> None:
    if not vpg.uses_critic:
        for name in ("vf_coef", "n_value_updates", "value_learning_rate", "value_batch_size"):
            if getattr(vpg, name) is not None:
                raise ValueError(f"{name}={getattr(vpg, name)} needs a critic: use baseline='value', or {name}=None")
    elif resolve_n_value_updates(vpg) == 0:
        if vpg.value_batch_size is not None:
            raise ValueError(
                f"value_batch_size={vpg.value_batch_size} needs a separately fitted critic: use n_value_updates > 0"
            )
    elif vpg.vf_coef is not None:
        raise ValueError(
            f"vf_coef={vpg.vf_coef} is the weight of the value loss in the joint loss, but n_value_updates="
            f"{vpg.n_value_updates} fits the critic separately: use n_value_updates=0, or vf_coef=None"
        )
    if vpg.critic_first and resolve_n_value_updates(vpg) == 0:
        raise ValueError("critic_first=True needs a separately fitted critic: use baseline='value' and n_value_updates > 0")
