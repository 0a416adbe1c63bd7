"""The table of algorithms names parts that exist."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import sb3_pg
from sb3_pg.registry import ALGOS, Algorithm

PACKAGE = Path(sb3_pg.__file__).resolve().parent


@pytest.mark.parametrize("key", ALGOS)
def test_the_key_is_the_rows_own(key: str) -> None:
    assert ALGOS[key].key == key


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        ALGOS["other"] = ALGOS["vpg"]  # type: ignore[index] # that is the point


@pytest.mark.parametrize("algorithm", ALGOS.values(), ids=list(ALGOS))
def test_every_entry_of_the_yml_can_be_used_by_the_zoo(algorithm: Algorithm) -> None:
    entries = yaml.safe_load(algorithm.yml_path().read_text(encoding="utf-8"))
    assert next(iter(entries)) == "default"
    for name, entry in entries.items():
        assert {"n_timesteps", "policy"} <= entry.keys(), name


def test_a_missing_yml_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"ghost\.yml, the default hyperparameters of ghost"):
        Algorithm("ghost", "", "", "", "ghost.yml").yml_path()


def test_the_yml_of_a_zipped_package_becomes_a_file(tmp_path: Path) -> None:
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("__init__.py", "registry.py", "version.txt"):
            file.write(PACKAGE / name, f"sb3_pg/{name}")
        for algorithm in ALGOS.values():
            file.write(algorithm.yml_path(), f"sb3_pg/hyperparams/{algorithm.yml}")
    code = """
import sb3_pg
from sb3_pg.registry import ALGOS
paths = [algorithm.yml_path() for algorithm in ALGOS.values()]
print(sb3_pg.__version__, sb3_pg.__file__, len(paths), all(path.read_text() for path in paths), *paths, sep="\\n")
"""
    # -S: neither an installed package nor the finder of an editable install may take precedence over the zip file.
    command = [sys.executable, "-S", "-c", code]
    path = {"PYTHONPATH": str(archive)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=path, cwd=tmp_path)
    version, file_name, number, readable, *paths = done.stdout.splitlines()
    assert version == sb3_pg.__version__
    assert file_name.startswith(str(archive))
    assert (number, readable) == (str(len(ALGOS)), "True")
    assert [path for path in paths if Path(path).exists()] == []  # removed when the process ended
