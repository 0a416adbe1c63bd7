"""
Variance of the two gradient estimators of SVG0, on a quadratic Q with a known gradient.

    python scripts/plot_svg0_variance.py -o docs/images/svg0_variance.png

Q(a) = -|a|^2 / 2 + offset, and a ~ N(m, s^2 I): the exact gradient with respect to m is -m. The figure shows the total
variance of single-sample estimates, over the number of action dimensions, and over the offset. The offset does not change the
task: a critic may be wrong by a constant.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch as th

from sb3_pg.common.distributions import GaussianActions
from sb3_pg.svg0.svg0 import likelihood_ratio_loss, pathwise_loss

ESTIMATORS = ("likelihood ratio", "pathwise")


def variance(estimator: str, dim: int, offset: float, std: float, n_draws: int) -> float:
    """
    :param estimator: one of ``ESTIMATORS``
    :param dim: number of action dimensions
    :param offset: constant added to Q
    :param std: standard deviation of the policy
    :param n_draws: number of estimates
    :return: variance of a single-sample estimate, summed over the dimensions
    """
    th.manual_seed(0)
    mean = th.full((n_draws, dim), 1 / dim**0.5, requires_grad=True)  # of length 1
    distribution = GaussianActions(mean, th.full((n_draws, 1), std))
    samples, weights = distribution.rsample(1), th.ones(n_draws)
    if estimator == "pathwise":
        loss = pathwise_loss(offset - samples.square().sum(dim=-1) / 2, weights)
    else:
        constants = samples.detach()
        q_values = offset - constants.square().sum(dim=-1) / 2
        loss = likelihood_ratio_loss(distribution.sample_log_prob(constants), q_values, weights)
    (gradient,) = th.autograd.grad(loss, mean)
    return float(gradient.var(dim=0).sum())


def curves(compute: Callable[[str, float], float], values: Sequence[float]) -> dict[str, list[float]]:
    """
    :param compute: function of an estimator and a value that returns the variance
    :param values: values of the varied quantity
    :return: estimator -> variances
    """
    return {estimator: [compute(estimator, value) for value in values] for estimator in ESTIMATORS}


def plot(output: Path, std: float, n_draws: int) -> None:
    """
    :param output: figure to write
    :param std: standard deviation of the policy
    :param n_draws: number of estimates per point
    """
    dims, offsets = [1, 2, 4, 8, 16, 32, 64], [0, 1, 2, 5, 10, 20, 50, 100]
    panels = [
        ("number of action dimensions", dims, curves(lambda name, dim: variance(name, int(dim), 0.0, std, n_draws), dims)),
        ("constant added to Q (4 dimensions)", offsets, curves(lambda name, c: variance(name, 4, c, std, n_draws), offsets)),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for ax, (label, values, series), scale in zip(axes, panels, ("log", "symlog"), strict=True):
        for (estimator, variances), marker in zip(series.items(), "os", strict=True):
            ax.plot(values, variances, marker=marker, markersize=4, label=estimator)
        ax.set_xscale(scale)
        ax.set_xticks(values, [str(value) for value in values])
        ax.minorticks_off()
        ax.set_yscale("log")
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("variance of one draw's gradient")
    axes[0].legend(frameon=False)
    figure.suptitle(f"Gradient of E Q, Q(a) = c - |a|² / 2, policy N(m, {std:g}² I) with |m| = 1", fontsize=11)
    figure.savefig(output, dpi=130)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("svg0_variance.png"), help="figure to write")
    parser.add_argument("--std", type=float, default=0.3, help="standard deviation of the policy")
    parser.add_argument("--draws", type=int, default=50_000, help="number of estimates per point")
    args = parser.parse_args()
    plot(args.output, args.std, args.draws)


if __name__ == "__main__":
    main()
