"""The scripts of the repository, which are no package, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent.parent / "scripts"


def load(name: str) -> ModuleType:
    """
    Import a script.

    :param name: of the file, without its ending
    :return: the module
    """
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for it
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # as when it is run: scripts import each other
    spec.loader.exec_module(module)
    return module
