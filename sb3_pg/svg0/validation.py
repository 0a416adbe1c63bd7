"""Checks of the options of SVG0. Each error message says what to change."""

import math
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from sb3_pg.common.distributions import COVARIANCES
from sb3_pg.common.validation import check_choice, check_fraction, check_integer, is_number
from sb3_pg.svg0.buffers import SequenceDictReplayBuffer, SequenceReplayBuffer

GRADIENT_ESTIMATORS = ("pathwise", "likelihood_ratio")
OFF_POLICY_CORRECTIONS = ("none", "retrace")
# Arguments of the policy that the algorithm sets from its own arguments.
NETWORK_OPTIONS = ("covariance", "state_dependent_covariance", "squash_output", "n_critics")

# Values of arguments that are None, where the other options use them.
BUFFER_SIZE = 1_000_000
LEARNING_STARTS = 100
BATCH_SIZE = 256
SEGMENT_LENGTH = 8


class Options(Protocol):
    """The attributes of SVG0 that are checked here."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    n_envs: int
    gamma: float
    tau: float
    td_lambda: float
    batch_size: int
    train_freq: Any
    action_noise: Any
    replay_buffer_class: type[Any] | None
    optimize_memory_usage: bool
    n_steps: int
    covariance: str
    policy_kwargs: dict[str, Any]
    use_sde: bool
    gradient_estimator: str
    n_action_samples: int
    segment_length: int | None
    off_policy_correction: str | None
    on_policy: bool
    ent_coef: str | float
    target_entropy: str | float | None


def resolve_options(svg0: Options, earlier: dict[str, int]) -> dict[str, int]:
    """
    Check all options, and replace ``None`` by the values in effect.

    :param svg0: algorithm, modified in place
    :param earlier: return value from before the model was saved: these arguments are resolved again, since their values may
        depend on the number of environments
    :return: name of each argument that was ``None`` -> its value
    :raises ValueError: see :func:`check_options`
    """
    for name, value in earlier.items():
        if getattr(svg0, name) == value:
            setattr(svg0, name, None)
    check_options(svg0)
    if svg0.on_policy:
        steps = _frequency(svg0.train_freq)[0] * svg0.n_envs
        values = {"buffer_size": steps, "learning_starts": 0, "batch_size": steps}
    else:
        values = {"buffer_size": BUFFER_SIZE, "learning_starts": LEARNING_STARTS, "batch_size": BATCH_SIZE}
    automatic = {name: value for name, value in values.items() if getattr(svg0, name) is None}
    for name, value in automatic.items():
        setattr(svg0, name, value)
    return automatic


def resolve_target_entropy(svg0: Options) -> float:
    """
    :param svg0: algorithm
    :return: target entropy of an automatic ``ent_coef``, in nats
    """
    if svg0.target_entropy is None or svg0.target_entropy == "auto":
        assert svg0.action_space.shape is not None
        return -float(np.prod(svg0.action_space.shape))
    return float(svg0.target_entropy)


def resolve_segment_length(svg0: Options) -> int:
    """
    :param svg0: algorithm
    :return: number of steps of a replayed segment
    """
    if svg0.segment_length is not None:
        return svg0.segment_length
    return SEGMENT_LENGTH if svg0.td_lambda > 0 else 1


def resolve_correction(svg0: Options) -> str:
    """
    :param svg0: algorithm
    :return: one of ``OFF_POLICY_CORRECTIONS``
    """
    if svg0.off_policy_correction is not None:
        return svg0.off_policy_correction
    knows_density = svg0.action_noise is None
    return "retrace" if svg0.td_lambda > 0 and knows_density and not svg0.on_policy else "none"


def initial_ent_coef(ent_coef: str | float) -> float | None:
    """
    :param ent_coef: argument of SVG0
    :return: initial value of an automatic coefficient; ``None`` for a fixed one
    :raises ValueError: neither a non-negative number nor ``"auto"`` nor ``"auto_<positive number>"``
    """
    automatic = isinstance(ent_coef, str) and ent_coef.startswith("auto")
    number = "1" if ent_coef == "auto" else str(ent_coef).removeprefix("auto_")
    try:
        value = math.nan if isinstance(ent_coef, bool) else float(number)
    except ValueError:
        value = math.nan
    if 0 <= value < math.inf and not (automatic and value == 0):
        return value if automatic else None
    raise ValueError(f'ent_coef={ent_coef!r} must be a number of at least 0, "auto", or "auto_<number>" such as "auto_0.1"')


def check_options(svg0: Options) -> None:
    """
    Check all options, before ``None`` is replaced.

    :param svg0: algorithm
    :raises ValueError: an option out of range, mutually exclusive options, or an unsupported action space
    """
    space = svg0.action_space
    if not (isinstance(space, spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"SVG0 differentiates through actions: the action space must be a bounded Box, not {space}")
    _check_names(svg0)
    _check_ranges(svg0)
    _check_unsupported(svg0)
    _check_entropy(svg0)
    _check_traces(svg0)
    if svg0.on_policy:
        _check_on_policy(svg0)
    elif _frequency(svg0.train_freq)[1] == "episode" and svg0.n_envs > 1:
        raise ValueError(
            f"train_freq={svg0.train_freq!r} counts the episodes of one environment, but there are {svg0.n_envs}: use steps"
        )


def _check_names(svg0: Options) -> None:
    check_choice("covariance", svg0.covariance, COVARIANCES)
    check_choice("gradient_estimator", svg0.gradient_estimator, GRADIENT_ESTIMATORS)
    check_choice("off_policy_correction", svg0.off_policy_correction, (None, *OFF_POLICY_CORRECTIONS))
    for name in NETWORK_OPTIONS:
        if name in svg0.policy_kwargs:
            raise ValueError(f"{name} is an argument of SVG0 itself: take it out of policy_kwargs")


def _check_ranges(svg0: Options) -> None:
    for name in ("gamma", "td_lambda", "tau"):
        check_fraction(name, getattr(svg0, name))
    for name, minimum in (
        ("buffer_size", 1),
        ("learning_starts", 0),
        ("batch_size", 1),
        ("n_action_samples", 1),
        ("n_critics", 1),
        ("segment_length", 1),
    ):
        optional = name not in ("n_action_samples", "n_critics")
        if not (getattr(svg0, name) is None and optional):
            check_integer(name, getattr(svg0, name), minimum)
    _frequency(svg0.train_freq)


def _check_unsupported(svg0: Options) -> None:
    if svg0.use_sde:
        raise ValueError(
            "use_sde=True is not supported: noise that is kept for several steps correlates the actions of a segment, but the "
            "behaviour log-probabilities are those of independent draws. Use use_sde=False"
        )
    if svg0.n_steps != 1:
        raise ValueError(
            f"n_steps={svg0.n_steps} is not supported: td_lambda and segment_length set the look-ahead, use n_steps=1"
        )
    if svg0.optimize_memory_usage:
        raise ValueError(
            "optimize_memory_usage=True would lose the final observations of truncated episodes, from which targets "
            "bootstrap: use optimize_memory_usage=False and a smaller buffer_size"
        )
    expected = SequenceDictReplayBuffer if isinstance(svg0.observation_space, spaces.Dict) else SequenceReplayBuffer
    given = svg0.replay_buffer_class
    if given is not None and not issubclass(given, expected):
        raise ValueError(
            f"replay_buffer_class={given.__name__} cannot store the behaviour log-probabilities and segments of SVG0: use a "
            f"subclass of sb3_pg.svg0.buffers.{expected.__name__}, or None"
        )


def _check_entropy(svg0: Options) -> None:
    automatic = initial_ent_coef(svg0.ent_coef) is not None
    target = svg0.target_entropy
    if target is not None and not automatic:
        raise ValueError(
            f'target_entropy={target!r} has no effect on the fixed ent_coef={svg0.ent_coef!r}: use ent_coef="auto", or '
            "target_entropy=None"
        )
    if target not in (None, "auto") and not (is_number(target) and math.isfinite(float(target))):
        raise ValueError(f'target_entropy={target!r} must be a number, "auto" or None')


def _check_traces(svg0: Options) -> None:
    correction, length = svg0.off_policy_correction, svg0.segment_length
    if svg0.td_lambda == 0:
        if correction == "retrace":
            raise ValueError(
                "off_policy_correction='retrace' corrects traces, and td_lambda=0 has none: use td_lambda > 0, or "
                "off_policy_correction=None"
            )
        if length not in (None, 1):
            raise ValueError(
                f"segment_length={length} has no effect with td_lambda=0, which uses single steps: use td_lambda > 0, or "
                "segment_length=None"
            )
    elif length == 1:
        raise ValueError(
            f"td_lambda={svg0.td_lambda} has no effect on segments of one step: use segment_length > 1, or td_lambda=0"
        )
    if svg0.action_noise is not None and correction == "retrace":
        raise ValueError(
            "off_policy_correction='retrace' needs the density of the actions, which action_noise makes unknown: use "
            "action_noise=None (the policy itself is stochastic), or off_policy_correction='none'"
        )
    batch, steps = svg0.batch_size or BATCH_SIZE, resolve_segment_length(svg0)
    if not svg0.on_policy and batch % steps:
        raise ValueError(
            f"batch_size={batch} is the number of steps in a minibatch and must be a multiple of segment_length={steps}"
        )


def _check_on_policy(svg0: Options) -> None:
    for name in ("buffer_size", "learning_starts", "batch_size", "segment_length"):
        if getattr(svg0, name) is not None:
            raise ValueError(
                f"{name}={getattr(svg0, name)} is an option of replay: on_policy=True learns only from the latest train_freq "
                f"steps of each environment. Use {name}=None, or on_policy=False"
            )
    frequency, unit = _frequency(svg0.train_freq)
    if unit != "step":
        raise ValueError(f"on_policy=True needs train_freq in steps, not {unit}s: its rollouts have a fixed length")
    if frequency == 1 and svg0.td_lambda > 0:
        raise ValueError(
            f"td_lambda={svg0.td_lambda} has no effect on rollouts of one step: with on_policy=True use train_freq > 1, the "
            "number of steps in a rollout, or td_lambda=0"
        )
    if svg0.action_noise is not None:
        raise ValueError("on_policy=True learns from the policy's own actions: use action_noise=None, or on_policy=False")


def _frequency(train_freq: Any) -> tuple[int, str]:
    """Frequency and unit, from an integer, a pair, or SB3's ``TrainFreq``."""
    pair = tuple(train_freq) if isinstance(train_freq, (tuple, list)) else (train_freq, "step")
    frequency, unit = pair if len(pair) == 2 else (None, None)
    unit = getattr(unit, "value", unit)
    if not (is_number(frequency) and isinstance(frequency, int) and frequency >= 1) or unit not in ("step", "episode"):
        raise ValueError(
            f"train_freq={train_freq!r} must be a number of steps of at least 1, or a pair such as (1, 'episode')"
        )
    return frequency, unit
