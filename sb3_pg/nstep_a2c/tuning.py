"""What the RL Zoo needs to tune NStepA2C: a search space, and the way from a stored trial to the constructor's arguments."""

from typing import TYPE_CHECKING, Any

from sb3_pg.common.tuning import ACTIVATION_FNS, NET_ARCHS, n_steps_powers, network_kwargs

if TYPE_CHECKING:
    import optuna

# Steps of all environments together in one batch. Small ones are what A2C is known for: many updates, each a noisy one.
BATCH_SIZES = (32, 2048)
MIN_N_STEPS = 4
# The longest look-ahead that is drawn; beyond it the end of the rollout is a horizon of its own.
MAX_RETURN_STEPS_POW = 5

HORIZONS = ("rollout", "return_steps", "gae")
USE_RMS_PROP: dict[str, bool | str] = {"adam": False, "rms_prop": True, "rms_prop_tf": "tf"}


def sample_nstep_a2c_params(
    trial: "optuna.Trial",
    n_actions: int,  # noqa: ARG001 # the zoo passes it to every sampler
    n_envs: int,
    additional_args: dict[str, Any],  # noqa: ARG001 # likewise
) -> dict[str, Any]:
    """
    Draw hyperparameters of NStepA2C, with all three horizons, all optimizers, and a critic with or without one of its own.

    :param trial: Optuna trial; it stores all that :func:`convert_nstep_a2c_params` needs.
    :param n_actions: Number of dimensions of the action, not used here.
    :param n_envs: Number of environments; it bounds the length of a rollout.
    :param additional_args: What the zoo knows of the replay buffer, not used here.
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
    # What a reader of the study would otherwise have to compute.
    for name in ("n_steps", "gamma", "return_steps", "gae_lambda"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_nstep_a2c_params(params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters that a trial stored into arguments of ``NStepA2C``.

    They are merged into the entry of the yml file, so the arguments that would contradict them there are reset.

    :param params: What :func:`sample_nstep_a2c_params` drew.
    :return: Arguments of ``NStepA2C``.
    """
    n_steps = 2 ** params["n_steps_pow"]
    horizon = params["horizon"]
    # With an optimizer of its own the critic must not share the features of images; vectors have none to share.
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
