"""What setup.cfg cannot say: which packages there are, and the files that run at interpreter start (see docs/zoo.md)."""

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HERE = Path(__file__).resolve().parent

# Both call the same function: Python 3.15 and later read `.start` (PEP 829) and skip the import line of the `.pth` beside it.
# The module lies beside them, outside of the package, so that it can be imported whatever happened to the package.
STARTUP_FILES = {
    "_sb3_pg_startup.py": (HERE / "sb3_pg" / "zoo" / "_startup.py").read_text(encoding="utf-8"),
    "sb3_pg.pth": 'import sys; exec("try:\\n    import _sb3_pg_startup as s; s.install()\\nexcept Exception: pass")\n',
    "sb3_pg.start": "_sb3_pg_startup:install\n",
}


class BuildPy(build_py):
    """Put the start-up files beside the package: in wheels, and in what is installed from an sdist."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            for name, text in STARTUP_FILES.items():
                Path(self.build_lib, name).write_text(text, encoding="utf-8")

    def get_outputs(self, include_bytecode: int = 1) -> list[str]:
        """
        List what was built.

        :param include_bytecode: Whether compiled files count.
        :return: Paths in the build folder.
        """
        ours = [] if self.editable_mode else [str(Path(self.build_lib, name)) for name in STARTUP_FILES]
        return [*super().get_outputs(include_bytecode), *ours]


class EditableWheel(editable_wheel):
    """Put them into the wheel of an editable install too, which otherwise holds only pointers to this folder."""

    def run(self) -> None:
        """Build."""
        super().run()
        (wheel,) = Path(self.dist_dir).glob("sb3_pg-*.editable-*.whl")
        add_to_wheel(wheel, STARTUP_FILES)


def add_to_wheel(wheel: Path, files: dict[str, str]) -> None:
    """
    Add files to a wheel and to its list of contents, without which they would survive `pip uninstall`.

    :param wheel: The wheel.
    :param files: Name and text of each file.
    """
    with zipfile.ZipFile(wheel) as archive:
        contents = {item: archive.read(item) for item in archive.infolist()}
    lines = "".join(record_line(name, text) for name, text in files.items()).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        for item, data in contents.items():
            archive.writestr(item, lines + data if item.filename.endswith(".dist-info/RECORD") else data)


def record_line(name: str, text: str) -> str:
    """
    Describe a file as a wheel's RECORD does.

    :param name: Name of the file.
    :param text: What it holds.
    :return: The line.
    """
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(text.encode())}\n"


setup(
    # The folder of yml files is no Python package, `find:` does not see it.
    packages=[*find_packages(include=["sb3_pg", "sb3_pg.*"]), "sb3_pg.hyperparams"],
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
)
