"""A virtual environment to run commands in."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

# pip must not use a package index, nor create an isolated build environment.
PIP_INSTALL = (
    "-m",
    "pip",
    "install",
    "--quiet",
    "--no-deps",
    "--no-index",
    "--no-build-isolation",
    "--disable-pip-version-check",
)


@dataclass(frozen=True)
class Environment:
    """
    A virtual environment.

    :param folder: Folder of the environment.
    :param site: Its site-packages.
    :param work: Empty folder, the working directory of all commands.
    """

    folder: Path
    site: Path
    work: Path

    def python(self, *arguments: str | Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """
        Run the environment's interpreter.

        :param arguments: Its arguments.
        :param check: Whether to require exit status 0.
        :param variables: Additional environment variables.
        :return: The finished process with its output.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SB3_PG"))}
        command = [self.folder / "bin" / "python", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.work, env={**kept, **variables}, check=False)
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done

    def files(self) -> set[Path]:
        """
        List what is installed.

        :return: All files in site-packages.
        """
        return {path.relative_to(self.site) for path in self.site.rglob("*") if path.is_file()}
