"""Tuning of HERDDPG with the RL Zoo: a search space, and the conversion of a stored trial to constructor arguments."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

NET_ARCHS: dict[str, list[int]] = {"small": [128, 128], "medium": [256, 256], "large": [256, 256, 256]}
_UNCHANGED = ("learning_rate", "batch_size", "tau", "gradient_steps", "random_eps", "action_noise_std", "action_l2")


def sample_her_ddpg_params(
    trial: "optuna.Trial",
    n_actions: int,  # noqa: ARG001 # the zoo passes it to every sampler
    n_envs: int,  # noqa: ARG001 # the zoo passes it to every sampler
    additional_args: dict[str, Any],  # noqa: ARG001 # goal selection is always tuned, regardless of the yml file
) -> dict[str, Any]:
    """
    Sample hyperparameters of HERDDPG. The cycle length and the discount factor depend on the environment and are not tuned.

    :param trial: Optuna trial, which stores everything that :func:`convert_her_ddpg_params` needs
    :param n_actions: number of action dimensions, not used here
    :param n_envs: number of environments, not used here
    :param additional_args: replay buffer options of the zoo, not used here
    :return: arguments of ``HERDDPG``
    """
    trial.suggest_float("learning_rate", 2e-4, 4e-3, log=True)
    trial.suggest_categorical("batch_size", [256, 512, 1024, 2048])
    trial.suggest_float("tau", 0.005, 0.2, log=True)
    trial.suggest_int("gradient_steps", 10, 160, log=True)
    trial.suggest_float("random_eps", 0.0, 0.5)
    trial.suggest_float("action_noise_std", 0.02, 0.5, log=True)
    trial.suggest_float("action_l2", 0.01, 3.0, log=True)
    trial.suggest_categorical("goal_selection_strategy", ["future", "final", "episode"])
    trial.suggest_int("n_sampled_goal", 1, 8)
    trial.suggest_categorical("net_arch", list(NET_ARCHS))
    return convert_her_ddpg_params(trial.params)


def convert_her_ddpg_params(params: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the parameters stored in a trial to arguments of ``HERDDPG``.

    They are merged into the entry of the yml file. The argument of that entry that would conflict with them is reset.

    :param params: parameters sampled by :func:`sample_her_ddpg_params`
    :return: arguments of ``HERDDPG``
    """
    return {
        **{name: params[name] for name in _UNCHANGED},
        "replay_buffer_kwargs": {name: params[name] for name in ("goal_selection_strategy", "n_sampled_goal")},
        "policy_kwargs": {"net_arch": list(NET_ARCHS[params["net_arch"]])},
        "action_noise": None,
    }
