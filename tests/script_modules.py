"""Import the scripts of the repository, which are not a package, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent.parent / "scripts"


def load(name: str) -> ModuleType:
    """
    Import a script.

    :param name: file name without suffix
    :return: the module
    """
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # needed by dataclasses
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # scripts import one another
    spec.loader.exec_module(module)
    return module
