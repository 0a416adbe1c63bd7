"""Every algorithm has all its parts: code, hyperparameters, tests and documents."""

import ast
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import sb3_pg
from sb3_pg.registry import ALGOS, Algorithm

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOT_ALGORITHMS = {"common", "diagnose", "envs", "estimators", "fast", "zoo", "__pycache__"}


def folder_of(algorithm: Algorithm) -> str:
    """
    Folder of an algorithm in the package.

    :param algorithm: row of the registry
    :return: name of the folder
    """
    return algorithm.class_.split(".")[1]


def lines_of(path: Path) -> list[str]:
    """
    Read a file that may not exist.

    :param path: path of the file
    :return: its lines, empty if it does not exist
    """
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def cells_of(row: str) -> set[str]:
    """
    Split a row of a Markdown table.

    :param row: line of the row
    :return: its cells
    """
    return {cell.strip() for cell in row.split("|")}


def resolves(load: Callable[[], object]) -> bool:
    """
    Check that a name of the registry can be imported.

    :param load: imports the object
    :return: whether it is callable
    """
    try:
        return callable(load())
    except (ImportError, AttributeError):
        return False


def exports(algorithm: Algorithm) -> bool:
    """
    Check the public name of an algorithm.

    :param algorithm: row of the registry
    :return: whether ``sb3_pg`` exports the class
    """
    name = algorithm.class_name
    return name in sb3_pg.__all__ and getattr(sb3_pg, name) is algorithm.load_class()


def missing_parts(algorithm: Algorithm, lines_of_conftest: Mapping[str, Any]) -> list[str]:
    """
    List the missing parts of an algorithm.

    :param algorithm: row of the registry
    :param lines_of_conftest: small models of ``tests/conftest.py``
    :return: one message for each missing part
    """
    key, folder, class_name = algorithm.key, folder_of(algorithm), algorithm.class_name
    names = ("__init__", folder, "policies", "tuning")
    settings = yaml.safe_load("\n".join(lines_of(ROOT / "hyperparams" / algorithm.yml))) or {}
    rows = [line for line in lines_of(ROOT / "README.md") if line.startswith("|")]
    parts = {f"file sb3_pg/{folder}/{name}.py": (ROOT / "sb3_pg" / folder / f"{name}.py").is_file() for name in names} | {
        f"class {algorithm.class_}": resolves(algorithm.load_class),
        f"public name sb3_pg.{class_name}": exports(algorithm),
        f"tuning function {algorithm.sampler}": resolves(algorithm.load_sampler),
        f"tuning function {algorithm.converter}": resolves(algorithm.load_converter),
        f"hyperparams/{algorithm.yml} with `default:` first": next(iter(settings), None) == "default",
        "line in tests/conftest.py": key in lines_of_conftest,
        f"tests in tests/{folder}": any((ROOT / "tests" / folder).glob("test_*.py")),
        f"page docs/{key}.md with a title": "".join(lines_of(ROOT / "docs" / f"{key}.md")).startswith("# "),
        "link in docs/README.md": f"({key}.md)" in "\n".join(lines_of(ROOT / "docs" / "README.md")),
        "row in README.md": any({f"`{class_name}`", f"`{key}`", f"[docs](docs/{key}.md)"} <= cells_of(row) for row in rows),
    }
    return [part for part, there in parts.items() if not there]


@pytest.mark.parametrize("algorithm", ALGOS.values(), ids=list(ALGOS))
def test_every_algorithm_is_complete(algorithm: Algorithm, algorithms: Mapping[str, Any]) -> None:
    assert missing_parts(algorithm, algorithms) == []


def test_every_missing_part_is_reported(algorithms: Mapping[str, Any]) -> None:
    ghost = Algorithm(
        "ghost", "sb3_pg.ghost.ghost:Ghost", "sb3_pg.ghost.tuning:sample", "sb3_pg.ghost.tuning:convert", "ghost.yml"
    )
    subjects = [part.split()[0] for part in missing_parts(ghost, algorithms)]
    package = [*["file"] * 4, "class", "public", *["tuning"] * 2]
    assert subjects == [*package, "hyperparams/ghost.yml", "line", "tests", "page", "link", "row"]


def test_nothing_is_left_unregistered(algorithms: Mapping[str, Any]) -> None:
    folders = {path.name for path in (ROOT / "sb3_pg").iterdir() if path.is_dir()} - NOT_ALGORITHMS
    assert folders == {folder_of(algorithm) for algorithm in ALGOS.values()}
    assert {path.name for path in (ROOT / "hyperparams").iterdir()} == {algorithm.yml for algorithm in ALGOS.values()}
    assert set(algorithms) == set(ALGOS)


def test_public_names_are_those_of_the_registry() -> None:
    """Both at run time and for type checkers."""
    expected = {algorithm.class_name for algorithm in ALGOS.values()} | {"register"}
    assert set(sb3_pg.__all__) == expected | {"__version__"}
    tree = ast.parse(Path(sb3_pg.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names} == expected
    with pytest.raises(AttributeError, match="no attribute 'PPO'"):
        getattr(sb3_pg, "PPO")  # noqa: B009 # as for a misspelt name


def test_changelog_describes_this_version() -> None:
    headings = [line for line in lines_of(ROOT / "CHANGELOG.md") if line.startswith("## ")]
    assert headings[0].startswith(f"## Release {sb3_pg.__version__} ")


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_point_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_constraints_pin_all_that_is_installed(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--installed"):
        pytest.skip("only scripts/test.sh installs by constraints.txt")
    pins = [Requirement(line) for line in lines_of(ROOT / "constraints.txt") if line and not line.startswith("#")]
    wanted = {canonical(pin.name): pin.specifier for pin in pins if pin.marker is None or pin.marker.evaluate()}
    installed = {canonical(found.metadata["Name"]): found.version for found in importlib.metadata.distributions()}
    del installed["sb3-pg"]
    assert {name: version for name, version in installed.items() if version not in wanted.get(name, ())} == {}


def canonical(name: str) -> str:
    """
    Normalise a name as package indexes do.

    :param name: name of a distribution
    :return: name in lower case, with every run of dots, dashes and underscores replaced by a dash
    """
    return re.sub(r"[-_.]+", "-", name).lower()
