"""Checks of the options of NStepA2C. Each message says what to change."""

from typing import Any, Protocol

import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_pg.common.validation import check_fraction, check_integer, check_max_grad_norm, check_return_steps

# Value of use_rms_prop that selects TensorFlow's RMSprop.
TENSORFLOW = "tf"
# Optimizers that use_rms_prop selects from.
OPTIMIZERS = (th.optim.Adam, th.optim.RMSprop, RMSpropTFLike)


class Options(Protocol):
    """The checked attributes, which are arguments of NStepA2C."""

    n_envs: int
    n_steps: int
    gamma: float
    gae_lambda: float
    max_grad_norm: Any  # None: no clipping
    normalize_advantage: bool
    return_steps: int | None
    rollout_buffer_class: Any
    policy_kwargs: dict[str, Any]

    @property
    def has_foreign_buffer(self) -> bool:
        """Whether the rollout buffer is one that only SB3's A2C can use."""


def optimizer_kwargs(use_rms_prop: bool | str, eps: float) -> dict[str, Any]:
    """
    Convert ``use_rms_prop`` to arguments of the policy.

    :param use_rms_prop: ``False`` (Adam), ``True`` or ``"tf"``
    :param eps: RMSprop's epsilon
    :return: keyword arguments of the policy, empty for its default, Adam
    :raises ValueError: ``use_rms_prop`` is none of these
    """
    if use_rms_prop not in (False, True, TENSORFLOW):
        raise ValueError(
            f'use_rms_prop={use_rms_prop!r} must be False (Adam), True (RMSprop) or "{TENSORFLOW}" (TensorFlow\'s)'
        )
    if not use_rms_prop:
        return {}
    optimizer_class = RMSpropTFLike if use_rms_prop == TENSORFLOW else th.optim.RMSprop
    return {"optimizer_class": optimizer_class, "optimizer_kwargs": dict(alpha=0.99, eps=eps, weight_decay=0)}


def check_options(model: Options) -> None:
    """
    Check everything that does not depend on the number of environments.

    :param model: algorithm
    :raises ValueError: an option is out of range, or options conflict
    """
    check_fraction("gamma", model.gamma)
    check_fraction("gae_lambda", model.gae_lambda)
    check_integer("n_steps", model.n_steps, 1)
    check_max_grad_norm(model.max_grad_norm)
    if model.return_steps is not None:
        check_integer("return_steps", model.return_steps, 1)
        check_return_steps(model.return_steps, model.n_steps)
        if model.gae_lambda != 1:
            raise ValueError(
                f"return_steps={model.return_steps} and gae_lambda={model.gae_lambda} both limit the look-ahead: use "
                "gae_lambda=1.0, or return_steps=None"
            )
    _check_foreign_buffer(model)
    _check_loaded_optimizer(model)


def check_environments(model: Options) -> None:
    """
    Check what depends on the number of environments, which a loaded model may change.

    :param model: algorithm
    :raises ValueError: a rollout is too small
    """
    if model.normalize_advantage and model.n_steps * model.n_envs < 2:
        raise ValueError("normalize_advantage=True needs at least two steps in a batch: raise n_steps, or use False")


def _check_foreign_buffer(model: Options) -> None:
    if not model.has_foreign_buffer:
        return
    for name in ("return_steps", "value_learning_rate"):
        if getattr(model, name) is not None:
            raise ValueError(
                f"{name}={getattr(model, name)} has no effect with rollout_buffer_class={model.rollout_buffer_class}: a "
                "buffer that computes its own advantages is used as in SB3's A2C. Derive it from "
                f"sb3_pg.common.buffers.PolicyGradientBuffer, or use {name}=None"
            )
    if model.max_grad_norm is None:
        raise ValueError(
            f"max_grad_norm=None and rollout_buffer_class={model.rollout_buffer_class}: such a buffer is used as in SB3's "
            "A2C, which always clips. Use a large number, such as 1e9"
        )


def _check_loaded_optimizer(model: Options) -> None:
    """The constructor turns these two options into arguments of the policy; only ``load`` sets them as attributes."""
    given, kwargs = vars(model), model.policy_kwargs
    saved = kwargs.get("optimizer_class", th.optim.Adam)
    if "use_rms_prop" in given:
        wanted = optimizer_kwargs(given["use_rms_prop"], 0.0).get("optimizer_class", th.optim.Adam)
        if wanted is not saved and saved in OPTIMIZERS:
            raise ValueError(
                f"use_rms_prop={given['use_rms_prop']!r} selects {wanted.__name__}, but the saved model has {saved.__name__}: "
                "leave it out, or load only the networks into a new model with set_parameters(..., exact_match=False)"
            )
    eps = (kwargs.get("optimizer_kwargs") or {}).get("eps")
    if saved in OPTIMIZERS[1:] and given.get("rms_prop_eps", eps) != eps:
        raise ValueError(f"rms_prop_eps={given['rms_prop_eps']} differs from {eps} in the saved model: leave it out")
