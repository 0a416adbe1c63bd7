"""
The table of algorithms. The zoo integration, the tests and the benchmarks loop over it.

A row holds names and imports objects on demand: importing this module imports neither torch nor Stable-Baselines3.
"""

import atexit
import pkgutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    from stable_baselines3.common.base_class import BaseAlgorithm

    Sampler = Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]
    Converter = Callable[[dict[str, Any]], dict[str, Any]]

# Copies of yml files that are inside a zip file: they exist until the process ends.
_extracted = ExitStack()
atexit.register(_extracted.close)


@dataclass(frozen=True)
class Algorithm:
    """
    Names of everything that the zoo needs of an algorithm.

    :param key: Key of the algorithm, the argument of ``--algo``.
    :param class_: Class of the algorithm, ``module:name``.
    :param sampler: Function that samples constructor arguments from an Optuna trial, ``module:name``.
    :param converter: Function that rebuilds these arguments from the parameters of a stored trial, ``module:name``.
    :param yml: File name of the default hyperparameters.
    """

    key: str
    class_: str
    sampler: str
    converter: str
    yml: str

    @property
    def class_name(self) -> str:
        """Name of the algorithm, under which the package offers it."""
        return self.class_.partition(":")[2]

    def load_class(self) -> "type[BaseAlgorithm]":
        """
        Import the class of the algorithm.

        :return: The class.
        """
        loaded: type[BaseAlgorithm] = pkgutil.resolve_name(self.class_)
        return loaded

    def load_sampler(self) -> "Sampler":
        """
        Import the function that samples hyperparameters.

        :return: Function of the trial, the number of actions, the number of environments and the zoo's additional arguments.
        """
        loaded: Sampler = pkgutil.resolve_name(self.sampler)
        return loaded

    def load_converter(self) -> "Converter":
        """
        Import the function that rebuilds hyperparameters.

        :return: Function of the parameters of a stored trial.
        """
        loaded: Converter = pkgutil.resolve_name(self.converter)
        return loaded

    def yml_path(self) -> Path:
        """
        Find the default hyperparameters: inside the installed package, or beside it in a checkout.

        :return: Path of the file. If the package is inside a zip file, path of a copy that exists until the process ends.
        :raises FileNotFoundError: The file is in neither place.
        """
        packaged = resources.files("sb3_pg").joinpath("hyperparams", self.yml)
        if packaged.is_file():
            return _extracted.enter_context(resources.as_file(packaged))
        beside = Path(__file__).resolve().parent.parent / "hyperparams" / self.yml
        if beside.is_file():
            return beside
        raise FileNotFoundError(f"{self.yml}, the default hyperparameters of {self.key}, is neither {packaged} nor {beside}")


def _row(name: str, class_: str) -> Algorithm:
    folder = f"sb3_pg.{name}"
    return Algorithm(
        key=name,
        class_=f"{folder}.{name}:{class_}",
        sampler=f"{folder}.tuning:sample_{name}_params",
        converter=f"{folder}.tuning:convert_{name}_params",
        yml=f"{name}.yml",
    )


ALGOS: Mapping[str, Algorithm] = MappingProxyType(
    {
        row.key: row
        for row in [
            _row("vpg", "VPG"),
            _row("nstep_a2c", "NStepA2C"),
            _row("svg0", "SVG0"),
            _row("her_ddpg", "HERDDPG"),
        ]
    }
)
