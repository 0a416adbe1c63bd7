"""What is in the archives, what pip installs of it, and what it removes."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from install.environment import PIP_INSTALL, Environment

from sb3_pg.registry import ALGOS

pytestmark = pytest.mark.slow
KINDS = pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
STARTUP_FILES = {"_sb3_pg_startup.py", "sb3_pg.pth", "sb3_pg.start"}


def test_the_wheel_holds_the_package_the_yml_files_and_the_startup_files(archives: dict[str, Path], source: Path) -> None:
    with zipfile.ZipFile(archives["wheel"]) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(source).as_posix() for path in (source / "sb3_pg").rglob("*.py")}
    data = {"sb3_pg/py.typed", "sb3_pg/version.txt", *(f"sb3_pg/hyperparams/{row.yml}" for row in ALGOS.values())}
    assert names == modules | data | STARTUP_FILES


def test_the_sdist_holds_all_that_building_and_testing_need(archives: dict[str, Path], source: Path) -> None:
    with tarfile.open(archives["sdist"]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {"setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "constraints.txt"}
    for folder in ("sb3_pg", "hyperparams", "tests", "scripts", "docs"):
        wanted |= {path.relative_to(source).as_posix() for path in (source / folder).rglob("*") if path.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert wanted - names == set()
    assert not [name for name in names if "__pycache__" in name]


def test_each_way_of_installing_brings_the_same_startup_files(installed: Environment, source: Path) -> None:
    texts = {name: (installed.site / name).read_text(encoding="utf-8") for name in STARTUP_FILES}
    assert texts == {
        "_sb3_pg_startup.py": (source / "sb3_pg" / "zoo" / "_startup.py").read_text(encoding="utf-8"),
        "sb3_pg.pth": 'import sys; exec("try:\\n    import _sb3_pg_startup as s; s.install()\\nexcept Exception: pass")\n',
        "sb3_pg.start": "_sb3_pg_startup:install\n",
    }


def test_the_yml_files_are_found_in_the_package_or_beside_it(installed: Environment, source: Path) -> None:
    code = "from sb3_pg.registry import ALGOS; print(*(row.yml_path() for row in ALGOS.values()), sep='\\n')"
    folders = {Path(line).parent for line in installed.python("-c", code).stdout.splitlines()}
    assert folders in ({installed.site / "sb3_pg" / "hyperparams"}, {source / "hyperparams"})
    assert all((folder / row.yml).is_file() for folder in folders for row in ALGOS.values())


def test_the_metadata_say_what_is_needed(installed: Environment, source: Path) -> None:
    code = """
import importlib.metadata, sb3_pg
data = importlib.metadata.metadata("sb3-pg")
print(data["Version"], sb3_pg.__version__, data["Requires-Python"], data["License"])
print(*data.get_all("Provides-Extra"))
print(*sorted(line.split("<")[0].split(">")[0] for line in data.get_all("Requires-Dist") if "extra ==" not in line))
"""
    version = (source / "sb3_pg" / "version.txt").read_text().strip()
    first, extras, needed = installed.python("-c", code).stdout.splitlines()
    assert first == f"{version} {version} >=3.10 MIT"
    assert set(extras.split()) == {
        "box2d",
        "envpool",
        "mujoco",
        "robotics",
        "plots",
        "postgres",
        "track",
        "video",
        "tests",
        "docs",
    }
    assert needed == "gymnasium numpy pandas requests rl_zoo3 sb3-contrib stable-baselines3 threadpoolctl torch"


@KINDS
def test_uninstalling_leaves_nothing(
    kind: str, create: Callable[[], Environment], archives: dict[str, Path], source: Path
) -> None:
    environment = create()
    environment.python("-c", "pass")
    before = environment.files()
    environment.python(*PIP_INSTALL, *(["--editable", source] if kind == "editable" else [archives[kind]]))
    environment.python("-c", "import sb3_pg.zoo")  # creates compiled files
    assert environment.files() > before
    environment.python("-m", "pip", "uninstall", "--yes", "sb3-pg")
    assert environment.files() == before
    assert {path.name for path in environment.site.iterdir()} <= {"dependencies.pth", "__pycache__"}
