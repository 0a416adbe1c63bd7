"""Names of the estimators, and the options of VPG that select them."""

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
# Option of VPG that the number after the colon sets, and its type.
_PARAMETERS = {"n_step": ("return_steps", int), "gae": ("gae_lambda", float)}


@dataclass(frozen=True)
class Estimator:
    """
    A gradient estimator: the factor of the score function at each step.

    :param weight: ``advantage_estimator`` of VPG
    :param baseline: ``baseline`` of VPG
    :param parameter: ``return_steps`` of ``n_step``, ``gae_lambda`` of ``gae``; ``None`` for other weights
    """

    weight: str
    baseline: str
    parameter: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Estimator":
        """
        Parse a name such as ``reward_to_go+mean``, ``n_step:5+value`` or ``gae:0.97+value``.

        :param text: ``weight[:number]+baseline``
        :return: the estimator. VPG checks whether weight and baseline can be combined
        :raises ValueError: unknown weight or baseline; missing, invalid or superfluous number
        """
        head, _, baseline = text.partition("+")
        weight, _, number = head.partition(":")
        if weight not in ADVANTAGE_ESTIMATORS or baseline not in BASELINES:
            weights, baselines = ", ".join(ADVANTAGE_ESTIMATORS), ", ".join(BASELINES)
            raise ValueError(
                f"estimator {text!r} is unknown: write weight+baseline, with one of the weights {weights} and one of the "
                f"baselines {baselines}. The defaults are {', '.join(DEFAULT_ESTIMATORS)}"
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
        """Weight with its parameter, for example ``gae:0.97``."""
        return self.weight if self.parameter is None else f"{self.weight}:{self.parameter:g}"

    @property
    def name(self) -> str:
        """Name in the format of :meth:`parse`."""
        return f"{self.weight_name}+{self.baseline}"

    def options(self, discount_gradient: bool) -> dict[str, Any]:
        """
        Arguments of ``VPG`` that select this estimator.

        :param discount_gradient: whether to weight step t by ``gamma^t``; the total return contains this factor already
        :return: keyword arguments
        """
        options: dict[str, Any] = {"advantage_estimator": self.weight, "baseline": self.baseline}
        if self.weight != "total_return":
            options["discount_gradient"] = discount_gradient
        if self.baseline == "value":
            # Nothing is trained here, and a single optimizer also works for networks that share features.
            options["n_value_updates"] = 0
        if self.weight in _PARAMETERS:
            options[_PARAMETERS[self.weight][0]] = self.parameter
        return options
