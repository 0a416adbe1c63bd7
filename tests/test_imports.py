"""Imports follow the layers of the package, and importing it imports nothing else."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sb3_pg

PACKAGE = Path(sb3_pg.__file__).resolve().parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Layer of each folder or module, lowest first; any other folder is an algorithm. A module imports from the layers below and
# from its own folder.
ESTIMATORS, COMMON, ENGINE, ALGORITHM, REGISTRY, TOOL, TOP = range(7)
LAYERS = {
    "estimators": ESTIMATORS,
    "common": COMMON,
    "fast": ENGINE,
    "envs": ENGINE,
    "envpool": TOOL,  # former location of envs.envpool
    "registry": REGISTRY,
    "diagnose": TOOL,
    "zoo": TOOL,
}
# Third-party packages that a layer may import; None: any.
ALLOWED = {
    ESTIMATORS: {"numpy"},
    COMMON: {"numpy", "torch", "gymnasium", "stable_baselines3"},
    ENGINE: {"numpy", "torch", "gymnasium", "stable_baselines3", "threadpoolctl", "envpool"},
    ALGORITHM: {"numpy", "torch", "gymnasium", "stable_baselines3", "optuna"},
    REGISTRY: {"optuna", "stable_baselines3"},
    TOOL: None,
    TOP: set(),
}


def layer_of(module: str) -> int:
    """
    Look up the layer of a module.

    :param module: dotted name of the module
    :return: layer
    :raises ValueError: the module has no layer yet
    """
    room = module.split(".")[1] if "." in module else None
    if room is None:
        return TOP
    if room not in LAYERS and (PACKAGE / f"{room}.py").exists():
        raise ValueError(f"give {module} a layer in {Path(__file__).name}")
    return LAYERS.get(room, ALGORITHM)


def name_of(path: Path) -> str:
    """
    Name of a module.

    :param path: file in the package
    :return: dotted name
    """
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str) -> Iterator[str]:
    """
    List the imports of a module, including those in functions and for type checking.

    :param source: source code
    :return: dotted names of modules
    :raises ValueError: a relative import
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError("use absolute imports")
            # `from sb3_pg import fast` imports sb3_pg.fast, `from sb3_pg import VPG` the package.
            rooms = (
                {alias.name for alias in node.names if (PACKAGE / alias.name).is_dir()} if node.module == "sb3_pg" else set()
            )
            yield from (f"sb3_pg.{room}" for room in rooms) if rooms else [node.module]


def violations(module: str, source: str) -> list[str]:
    """
    Check the imports of one module.

    :param module: dotted name of the module
    :param source: source code
    :return: forbidden imports
    """
    layer = layer_of(module)

    def forbidden(name: str) -> bool:
        top = name.partition(".")[0]
        if top != "sb3_pg":
            allowed = ALLOWED[layer]
            return allowed is not None and top not in allowed | sys.stdlib_module_names
        if layer == layer_of(name) and layer in (ENGINE, ALGORITHM):
            return name.split(".")[1] != module.split(".")[1]
        return layer_of(name) > layer

    return [name for name in imports_of(source) if forbidden(name)]


@pytest.mark.parametrize("path", MODULES, ids=[name_of(path) for path in MODULES])
def test_imports_follow_the_layers(path: Path) -> None:
    assert violations(name_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sb3_pg.estimators.returns", "import torch as th"),
        ("sb3_pg.estimators.baselines", "def f():\n    from stable_baselines3.common.buffers import RolloutBuffer"),
        ("sb3_pg.estimators.returns", "from sb3_pg.common import buffers"),
        ("sb3_pg.common.losses", "import optuna"),
        ("sb3_pg.common.base", "from sb3_pg.fast import select"),
        ("sb3_pg.common.off_policy", "from sb3_pg import fast"),
        ("sb3_pg.common.buffers", "from sb3_pg.vpg import vpg"),
        ("sb3_pg.fast.mlp", "from sb3_pg.svg0.policies import GaussianActor"),
        ("sb3_pg.fast.mlp", "from sb3_pg.envs.envpool import EnvPoolVecEnv"),
        ("sb3_pg.vpg.vpg", "import sb3_pg.svg0.policies"),
        ("sb3_pg.vpg.vpg", "from sb3_pg.registry import ALGOS"),
        ("sb3_pg.vpg.vpg", "from sb3_pg import VPG"),
        ("sb3_pg.vpg.tuning", "import rl_zoo3"),
        ("sb3_pg.registry", "from sb3_pg.zoo import register"),
        ("sb3_pg", "import numpy"),
    ],
)
def test_forbidden_imports_are_detected(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


def test_importing_the_package_imports_nothing_else() -> None:
    code = """
import sys
before = set(sys.modules)
import sb3_pg
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names - {"sb3_pg"}))
print(*sorted({"gymnasium", "numpy", "optuna", "pandas", "rl_zoo3", "stable_baselines3", "torch"} & set(sys.modules)))
"""
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "\n\n"
