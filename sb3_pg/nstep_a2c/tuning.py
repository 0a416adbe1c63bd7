"""Search space of NStepA2C for the RL Zoo, and the conversion of a stored trial to constructor arguments."""

from typing import TYPE_CHECKING, Any

from sb3_pg.common.tuning import ACTIVATION_FNS, NET_ARCHS, n_steps_powers, network_kwargs

if TYPE_CHECKING:
    import optuna

# Steps per batch, over all environments. Small batches are typical of A2C: many noisy updates.
BATCH_SIZES = (32, 2048)
MIN_N_STEPS = 4
# Base-2 logarithm of the longest look-ahead that is drawn; the horizon "rollout" covers longer ones.
MAX_RETURN_STEPS_POW = 5

HORIZONS = ("rollout", "return_steps", "gae")
USE_RMS_PROP: dict[str, bool | str] = {"adam": False, "rms_prop": True, "rms_prop_tf": "tf"}


def sample_nstep_a2c_params(
    trial: "optuna.Trial",
    n_actions: int,  # noqa: ARG001 # the zoo passes it to every sampler
    n_envs: int,
    additional_args: dict[str, Any],  # noqa: ARG001 # the zoo passes it to every sampler
) -> dict[str, Any]:
    """
    Draw hyperparameters of NStepA2C, with all three horizons, all optimizers, and a critic with or without its own optimizer.

    :param trial: Optuna trial; it stores everything that :func:`convert_nstep_a2c_params` needs.
    :param n_actions: Dimension of the action space, not used.
    :param n_envs: Number of environments; it bounds the length of a rollout.
    :param additional_args: Further arguments of the zoo's samplers, not used.
    :return: Arguments of ``NStepA2C``.
    """
    trial.suggest_int("n_steps_pow", *n_steps_powers(n_envs, MIN_N_STEPS, BATCH_SIZES))
    trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    horizon = trial.suggest_categorical("horizon", HORIZONS)
    if horizon == "return_steps":
        trial.suggest_int("return_steps_pow", 0, MAX_RETURN_STEPS_POW)
    elif horizon == "gae":
        trial.suggest_float("one_minus_gae_lambda", 0.001, 0.2, log=True)
    trial.suggest_categorical("normalize_advantage", [False, True])
    trial.suggest_categorical("optimizer", list(USE_RMS_PROP))
    trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    if trial.suggest_categorical("separate_critic", [False, True]):
        trial.suggest_float("value_learning_rate", 1e-4, 1e-2, log=True)
    trial.suggest_float("ent_coef", 1e-8, 0.1, log=True)
    trial.suggest_float("vf_coef", 0.1, 1.0)
    trial.suggest_float("max_grad_norm", 0.3, 5.0, log=True)
    trial.suggest_categorical("net_arch", list(NET_ARCHS))
    trial.suggest_categorical("activation_fn", list(ACTIVATION_FNS))
    hyperparams = convert_nstep_a2c_params(trial.params)
    # For readers of the study, who would otherwise have to compute them.
    for name in ("n_steps", "gamma", "return_steps", "gae_lambda"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_nstep_a2c_params(params: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the stored parameters of a trial to arguments of ``NStepA2C``.

    They are merged into the entry of the yml file, so conflicting arguments of the entry are reset.

    :param params: Parameters drawn by :func:`sample_nstep_a2c_params`.
    :return: Arguments of ``NStepA2C``.
    """
    n_steps = 2 ** params["n_steps_pow"]
    horizon = params["horizon"]
    # A critic with its own optimizer must not share the extractor of images; that of vectors has no parameters.
    unshared = {"share_features_extractor": False} if params["separate_critic"] else {}
    return {
        "n_steps": n_steps,
        "gamma": 1 - params["one_minus_gamma"],
        "return_steps": min(2 ** params["return_steps_pow"], n_steps) if horizon == "return_steps" else None,
        "gae_lambda": 1 - params["one_minus_gae_lambda"] if horizon == "gae" else 1.0,
        **{name: params[name] for name in _UNCHANGED},
        "use_rms_prop": USE_RMS_PROP[params["optimizer"]],
        "value_learning_rate": params["value_learning_rate"] if params["separate_critic"] else None,
        "policy_kwargs": {**network_kwargs(params), **unshared},
    }


_UNCHANGED = ("normalize_advantage", "learning_rate", "ent_coef", "vf_coef", "max_grad_norm")
