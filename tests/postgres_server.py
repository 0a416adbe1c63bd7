"""A local PostgreSQL server from the binaries of the package ``pgserver``."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Postgres refuses to run as root.
UNPRIVILEGED = "nobody"
BINARIES = "pgserver/pginstall/bin"


@contextlib.contextmanager
def server() -> Iterator[str]:
    """
    Run a server in a temporary folder. Skips the test if the binaries are not installed.

    :return: URL of an empty database
    """
    package = importlib.util.find_spec("pgserver")
    if package is None or package.origin is None or importlib.util.find_spec("psycopg2") is None:
        pytest.skip("pgserver and psycopg2-binary are not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        as_user = prepare(Path(package.origin).parent, folder)
        with running(folder, as_user) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare(package: Path, folder: Path) -> dict[str, Any]:
    """
    :param package: folder of the package; its shared libraries are beside it
    :param folder: target of copies of both and of an empty database
    :return: arguments for ``subprocess``
    """
    # Copied, since an unprivileged user may have no access to the originals.
    for path in package.parent.glob("pgserver*"):
        if path.is_dir() and path.suffix != ".dist-info":
            shutil.copytree(path, folder / path.name, symlinks=True)
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, UNPRIVILEGED)
        as_user = {"user": UNPRIVILEGED, "group": None, "extra_groups": []}
    command = [str(folder / BINARIES / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "--auth=trust"]
    command += ["-E", "UTF8", "--locale=C"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **as_user)
    return as_user


@contextlib.contextmanager
def running(folder: Path, as_user: dict[str, Any]) -> Iterator[str]:
    """
    :param folder: folder with the binaries and the database, see :func:`prepare`
    :param as_user: arguments for ``subprocess``, see :func:`prepare`
    :return: URL of the database
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(folder / BINARIES / "postgres"), "-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port)]
    command += ["-k", "", "-F"]  # no socket file, no fsync
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **as_user)
    try:
        deadline = time.monotonic() + 30
        while not answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown; SIGTERM would wait for clients
        process.wait(30)


def answers(port: int) -> bool:
    """
    :param port: port of the server
    :return: whether it accepts connections
    """
    import psycopg2  # type: ignore[import-untyped]  # no type annotations

    try:
        psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True
