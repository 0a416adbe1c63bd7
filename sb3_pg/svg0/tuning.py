"""Tuning of SVG0 with the RL Zoo: a search space, and the conversion of a stored trial to constructor arguments."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

NET_ARCHS: dict[str, list[int]] = {"small": [64, 64], "medium": [256, 256], "big": [400, 300]}


def sample_svg0_params(
    trial: "optuna.Trial",
    n_actions: int,  # noqa: ARG001 # the zoo passes it to every sampler
    n_envs: int,  # noqa: ARG001 # the zoo passes it to every sampler
    additional_args: dict[str, Any],  # noqa: ARG001 # the zoo passes it to every sampler
) -> dict[str, Any]:
    """
    Sample hyperparameters of SVG0 with replay.

    :param trial: Optuna trial, which stores everything that :func:`convert_svg0_params` needs
    :param n_actions: number of action dimensions, not used here
    :param n_envs: number of environments, not used here
    :param additional_args: replay buffer options of the zoo, not used here
    :return: arguments of ``SVG0``
    """
    trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True)
    trial.suggest_int("batch_size_pow", 6, 10)
    trial.suggest_int("train_freq_pow", 0, 6)
    trial.suggest_float("tau", 0.001, 0.08, log=True)
    trial.suggest_float("td_lambda", 0.1, 1.0)
    trial.suggest_int("segment_length_pow", 1, 4)
    trial.suggest_categorical("off_policy_correction", ["none", "retrace"])
    trial.suggest_int("n_action_samples", 1, 8, log=True)
    trial.suggest_categorical("covariance", ["isotropic", "diagonal", "full"])
    trial.suggest_float("log_std_init", -3, 0.5)
    trial.suggest_float("min_std", 0.01, 0.5, log=True)
    trial.suggest_categorical("net_arch", list(NET_ARCHS))
    hyperparams = convert_svg0_params(trial.params)
    # Derived values, for readers of the study.
    for name in ("gamma", "batch_size", "train_freq", "segment_length"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_svg0_params(params: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the parameters stored in a trial to arguments of ``SVG0``.

    They are merged into the entry of the yml file. Arguments of that entry that would conflict with them are reset.

    :param params: parameters sampled by :func:`sample_svg0_params`
    :return: arguments of ``SVG0``
    """
    frequency = 2 ** params["train_freq_pow"]
    return {
        "gamma": 1 - params["one_minus_gamma"],
        "batch_size": 2 ** params["batch_size_pow"],
        "segment_length": 2 ** params["segment_length_pow"],
        "train_freq": frequency,
        # One update per step at any frequency: otherwise the frequency would determine the amount of computation.
        "gradient_steps": frequency,
        **{name: params[name] for name in _UNCHANGED},
        "policy_kwargs": {
            "net_arch": list(NET_ARCHS[params["net_arch"]]),
            "log_std_init": params["log_std_init"],
            "min_std": params["min_std"],
        },
        "on_policy": False,
        # With action noise, the density that Retrace needs is unknown.
        "action_noise": None,
    }


_UNCHANGED = ("learning_rate", "tau", "td_lambda", "off_policy_correction", "n_action_samples", "covariance")
