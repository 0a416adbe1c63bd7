"""Names of the estimators that can be measured, and what they are called among VPG's options."""

from dataclasses import dataclass
from typing import Any

from sb3_pg.vpg.validation import ADVANTAGE_ESTIMATORS, BASELINES, GAE_LAMBDA

DEFAULT_ESTIMATORS = (
    "total_return+none",
    "total_return+mean",
    "total_return+optimal",
    "reward_to_go+none",
    "reward_to_go+mean",
    "reward_to_go+optimal",
    "reward_to_go+value",
    "n_step:5+value",
    f"gae:{GAE_LAMBDA}+value",
)
# The option that the number after the colon sets, and its type.
_PARAMETERS = {"n_step": ("return_steps", int), "gae": ("gae_lambda", float)}


@dataclass(frozen=True)
class Estimator:
    """
    What multiplies the score of each step.

    :param weight: VPG's ``advantage_estimator``
    :param baseline: VPG's ``baseline``
    :param parameter: ``return_steps`` of ``n_step``, ``gae_lambda`` of ``gae``; ``None`` elsewhere
    """

    weight: str
    baseline: str
    parameter: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Estimator":
        """
        Read a name such as ``reward_to_go+mean``, ``n_step:5+value`` or ``gae:0.97+value``.

        :param text: ``weight[:number]+baseline``
        :return: the estimator. Whether weight and baseline go together is for VPG to say
        :raises ValueError: a weight or baseline that does not exist, or a number that is missing, wrong or not wanted
        """
        head, _, baseline = text.partition("+")
        weight, _, number = head.partition(":")
        if weight not in ADVANTAGE_ESTIMATORS or baseline not in BASELINES:
            weights, baselines = ", ".join(ADVANTAGE_ESTIMATORS), ", ".join(BASELINES)
            raise ValueError(
                f"estimator {text!r} is unknown: write weight+baseline, with one of the weights {weights} and one of the "
                f"baselines {baselines}. Measured by default are {', '.join(DEFAULT_ESTIMATORS)}"
            )
        if weight not in _PARAMETERS:
            if number:
                raise ValueError(f"estimator {text!r}: {weight} takes no number, write {weight}+{baseline}")
            return cls(weight, baseline)
        if weight == "gae" and not number:
            return cls(weight, baseline, GAE_LAMBDA)
        option, kind = _PARAMETERS[weight]
        try:
            return cls(weight, baseline, kind(number))
        except ValueError:
            example = "n_step:5" if weight == "n_step" else f"gae:{GAE_LAMBDA}"
            raise ValueError(
                f"estimator {text!r} needs its {option} after a colon: for example {example}+{baseline}"
            ) from None

    @property
    def weight_name(self) -> str:
        """The weight with its number, ``gae:0.97``."""
        return self.weight if self.parameter is None else f"{self.weight}:{self.parameter:g}"

    @property
    def name(self) -> str:
        """What :meth:`parse` reads."""
        return f"{self.weight_name}+{self.baseline}"

    def options(self, discount_gradient: bool) -> dict[str, Any]:
        """
        Arguments of ``VPG`` that choose this estimator.

        :param discount_gradient: whether to weigh step t by ``gamma^t``; the total return does so by itself
        :return: keyword arguments
        """
        options: dict[str, Any] = {"advantage_estimator": self.weight, "baseline": self.baseline}
        if self.weight != "total_return":
            options["discount_gradient"] = discount_gradient
        if self.baseline == "value":
            # Nothing is trained here, and one optimizer for all suits networks with shared features too.
            options["n_value_updates"] = 0
        if self.weight in _PARAMETERS:
            options[_PARAMETERS[self.weight][0]] = self.parameter
        return options
