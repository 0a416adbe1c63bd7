"""Parts that several search spaces share. A trial stores names and numbers; the tables below give their meaning."""

from typing import Any

from torch import nn

NET_ARCHS: dict[str, list[int]] = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}
ACTIVATION_FNS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def network_kwargs(params: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the name of an architecture to arguments of an actor-critic policy whose two networks have the same layers.

    :param params: Parameters of a trial, with ``net_arch`` and ``activation_fn``.
    :return: Part of ``policy_kwargs``.
    """
    layers = NET_ARCHS[params["net_arch"]]
    return {
        "net_arch": {"pi": list(layers), "vf": list(layers)},
        "activation_fn": ACTIVATION_FNS[params["activation_fn"]],
    }


def n_steps_powers(n_envs: int, min_n_steps: int, batch_sizes: tuple[int, int]) -> tuple[int, int]:
    """
    Bound the length of a rollout so that the batch of all environments is neither tiny nor huge.

    :param n_envs: Number of environments.
    :param min_n_steps: Minimum length, regardless of the batch size; a power of two.
    :param batch_sizes: Minimum and maximum number of steps over all environments.
    :return: Base-2 logarithms of the minimum and maximum length, which are equal if there are too many environments.
    """
    smallest, largest = batch_sizes
    shortest = max(min_n_steps, -(-smallest // n_envs))
    longest = max(shortest, largest // n_envs)
    return (shortest - 1).bit_length(), longest.bit_length() - 1
