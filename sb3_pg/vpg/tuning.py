"""What the RL Zoo needs to tune VPG: a search space, and the way from a stored trial to the constructor's arguments."""

from typing import TYPE_CHECKING, Any

from sb3_pg.common.tuning import ACTIVATION_FNS, NET_ARCHS, n_steps_powers, network_kwargs

if TYPE_CHECKING:
    import optuna

# Steps of all environments together in one batch: enough for a gradient, few enough for a short study to see many updates.
BATCH_SIZES = (128, 4096)
# Below this length of a rollout the critic's bootstrap is most of what the policy learns from.
MIN_N_STEPS = 8


def sample_vpg_params(
    trial: "optuna.Trial",
    n_actions: int,  # noqa: ARG001 # the zoo passes it to every sampler
    n_envs: int,
    additional_args: dict[str, Any],  # noqa: ARG001 # likewise
) -> dict[str, Any]:
    """
    Draw hyperparameters of VPG with a learned value baseline.

    The forms without a critic (REINFORCE) are not searched: they need whole episodes, whose number depends on the environment.

    :param trial: Optuna trial; it stores all that :func:`convert_vpg_params` needs.
    :param n_actions: Number of dimensions of the action, not used here.
    :param n_envs: Number of environments; it bounds the length of a rollout.
    :param additional_args: What the zoo knows of the replay buffer, not used here.
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
    # What a reader of the study would otherwise have to compute.
    for name in ("n_steps", "gamma", "gae_lambda"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_vpg_params(params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters that a trial stored into arguments of ``VPG``.

    They are merged into the entry of the yml file, so the arguments that would contradict them there are reset.

    :param params: What :func:`sample_vpg_params` drew.
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
