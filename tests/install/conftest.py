"""
Throw-away environments with sb3_pg installed in each way that a user might choose.

Nothing but sb3_pg is installed into them: they borrow the rest from the environment that runs the tests, through a folder of
links to what it has installed. That folder leaves out sb3_pg, so that the one under test is the environment's own.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from install.environment import PIP_INSTALL, Environment

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("wheel", "sdist", "editable")


def is_site_packages(path: Path) -> bool:
    """
    Distinguish folders of installed packages from the standard library and from checkouts.

    :param path: An entry of ``sys.path``.
    :return: Whether something is installed there.
    """
    return path.is_dir() and any(path.glob("*.dist-info"))


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Link to everything that is installed here, except sb3_pg.

    :param tmp_path_factory: pytest's own.
    :return: The folder of links.
    """
    folder = tmp_path_factory.mktemp("dependencies")
    for path in filter(is_site_packages, map(Path, sys.path)):
        for entry in path.iterdir():
            link = folder / entry.name
            if "sb3_pg" not in entry.name and entry.suffix != ".pth" and not link.exists():  # the first on the path wins
                link.symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Copy the project, so that building does not change it, and earlier builds do not change the result.

    :param tmp_path_factory: pytest's own.
    :return: The copy.
    """
    ignored = shutil.ignore_patterns(".*", "build", "dist", "logs", "runs", "out", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "project", ignore=ignored))


@pytest.fixture(scope="session")
def archives(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """
    Build the distributions.

    :param source: The project.
    :param tmp_path_factory: pytest's own.
    :return: The paths of the ``wheel`` and of the ``sdist``.
    """
    folder = tmp_path_factory.mktemp("archives")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="session")
def create(dependencies: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Environment]:
    """
    Create environments without sb3_pg.

    :param dependencies: Folder of links to installed packages.
    :param tmp_path_factory: pytest's own.
    :return: Function that creates an environment.
    """

    def make() -> Environment:
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(f"{dependencies}\n")
        (folder / "work").mkdir()
        return Environment(folder, site, folder / "work")

    return make


@pytest.fixture(scope="session")
def install(create: Callable[[], Environment], archives: dict[str, Path], source: Path) -> Callable[[str], Environment]:
    """
    Create environments with sb3_pg.

    :param create: Function that creates an environment without sb3_pg.
    :param archives: Wheel and source distribution.
    :param source: Project folder for the editable install.
    :return: Function of the kind of installation that creates an environment.
    """

    def make(kind: str) -> Environment:
        environment = create()
        environment.python(*PIP_INSTALL, *(["--editable", source] if kind == "editable" else [archives[kind]]))
        return environment

    return make


@pytest.fixture(scope="session")
def wheel(install: Callable[[str], Environment]) -> Environment:
    """
    Install the wheel, for tests that do not change the environment.

    :param install: Function that creates environments.
    :return: The environment.
    """
    return install("wheel")


@pytest.fixture(scope="session", params=KINDS)
def installed(request: pytest.FixtureRequest, install: Callable[[str], Environment]) -> Environment:
    """
    Install in each way, for tests that do not change the environment.

    :param request: pytest's own.
    :param install: Function that creates environments.
    :return: The environment.
    """
    return install(request.param)
