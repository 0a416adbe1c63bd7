"""Search space of VPG for the RL Zoo, and the conversion of a stored trial to constructor arguments."""

from typing import TYPE_CHECKING, Any

from sb3_pg.common.tuning import ACTIVATION_FNS, NET_ARCHS, n_steps_powers, network_kwargs

if TYPE_CHECKING:
    import optuna

# Steps per batch, over all environments: enough for a gradient, few enough for many updates in a short study.
BATCH_SIZES = (128, 4096)
# In shorter rollouts, the policy learns mostly from the critic's bootstrap.
MIN_N_STEPS = 8


def sample_vpg_params(
    trial: "optuna.Trial",
    n_actions: int,  # noqa: ARG001 # the zoo passes it to every sampler
    n_envs: int,
    additional_args: dict[str, Any],  # noqa: ARG001 # the zoo passes it to every sampler
) -> dict[str, Any]:
    """
    Draw hyperparameters of VPG with a learned value baseline.

    Variants without a critic (REINFORCE) are not searched: they need whole episodes, whose number depends on the environment.

    :param trial: Optuna trial; it stores everything that :func:`convert_vpg_params` needs.
    :param n_actions: Dimension of the action space, not used.
    :param n_envs: Number of environments; it bounds the length of a rollout.
    :param additional_args: Further arguments of the zoo's samplers, not used.
    :return: Arguments of ``VPG``.
    """
    trial.suggest_int("n_steps_pow", *n_steps_powers(n_envs, MIN_N_STEPS, BATCH_SIZES))
    trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    if trial.suggest_categorical("advantage_estimator", ["reward_to_go", "gae"]) == "gae":
        trial.suggest_float("one_minus_gae_lambda", 0.001, 0.2, log=True)
    trial.suggest_categorical("normalize_advantage", [False, True])
    trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True)
    trial.suggest_float("value_learning_rate", 1e-4, 1e-2, log=True)
    trial.suggest_int("n_value_updates", 1, 80, log=True)
    trial.suggest_float("ent_coef", 1e-8, 0.1, log=True)
    trial.suggest_float("max_grad_norm", 0.3, 5.0, log=True)
    trial.suggest_categorical("net_arch", list(NET_ARCHS))
    trial.suggest_categorical("activation_fn", list(ACTIVATION_FNS))
    hyperparams = convert_vpg_params(trial.params)
    # For readers of the study, who would otherwise have to compute them.
    for name in ("n_steps", "gamma", "gae_lambda"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_vpg_params(params: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the stored parameters of a trial to arguments of ``VPG``.

    They are merged into the entry of the yml file, so conflicting arguments of the entry are reset.

    :param params: Parameters drawn by :func:`sample_vpg_params`.
    :return: Arguments of ``VPG``.
    """
    return {
        "n_steps": 2 ** params["n_steps_pow"],
        "gamma": 1 - params["one_minus_gamma"],
        "advantage_estimator": params["advantage_estimator"],
        "gae_lambda": 1 - params["one_minus_gae_lambda"] if params["advantage_estimator"] == "gae" else None,
        **{name: params[name] for name in _UNCHANGED},
        "policy_kwargs": network_kwargs(params),
        "baseline": "value",
        "n_episodes": None,
        "return_steps": None,
        "value_batch_size": None,
        "vf_coef": None,
    }


_UNCHANGED = ("normalize_advantage", "learning_rate", "value_learning_rate", "n_value_updates", "ent_coef", "max_grad_norm")
