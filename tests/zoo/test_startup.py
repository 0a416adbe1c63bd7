"""The finder of the start-up hook, on modules of our own. tests/install tries the real thing in fresh environments."""

import copy
import importlib
import importlib.util
import inspect
import runpy
import sys
import threading
import warnings
import zipfile
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sb3_pg.zoo import _startup, patches

WATCHED = ("watched.one", "watched.two")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    Write a package with the watched modules ``one`` and ``two`` and the module ``other``.

    :param tmp_path: Parent folder.
    :param monkeypatch: pytest's own.
    :return: Its folder.
    """
    package = tmp_path / "watched"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("one", "two", "other"):
        (package / f"{name}.py").write_text(f"value = '{name}'\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in list(sys.modules):
        if name.partition(".")[0] == "watched":
            monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    return package


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:  # noqa: ARG001 # it must exist
    """
    Install a second hook, one that watches the modules in ``folder``.

    :param monkeypatch: pytest's own.
    :param folder: The package.
    :return: Its module.
    """
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delenv("SB3_PG_NO_AUTOREGISTER", raising=False)
    spec = importlib.util.spec_from_file_location("startup_copy", _startup.__file__)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WATCHED = frozenset(WATCHED)
    module.install()
    return module


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """
    Record calls instead of patching.

    :param monkeypatch: pytest's own.
    :return: The ``value`` of each patched module at that time.
    """
    calls: list[str] = []
    monkeypatch.setattr(patches, "patch", lambda module: calls.append(module.value))
    return calls


def finders() -> list[Any]:
    """
    Find hooks.

    :return: Hooks on ``sys.meta_path`` that the fixture has installed.
    """
    return [finder for finder in sys.meta_path if type(finder).__module__ == "startup_copy"]


def test_the_hook_watches_the_modules_that_there_are_patches_for() -> None:
    assert patches.PATCHES.keys() == _startup.WATCHED


@pytest.mark.usefixtures("hook")
def test_a_watched_module_is_patched_once_it_has_run(patched: list[str]) -> None:
    import watched.one  # type: ignore[import-not-found] # written by the fixture

    assert patched == ["one"]
    importlib.import_module("watched.one")
    assert patched == ["one"]
    importlib.import_module("watched.two")
    assert patched == ["one", "two"]
    assert isinstance(watched.one.__loader__, SourceFileLoader)
    assert watched.one.__spec__.loader is watched.one.__loader__
    assert inspect.getsource(watched.one) == "value = 'one'\n"


@pytest.mark.usefixtures("hook")
def test_other_modules_are_left_to_the_other_finders(patched: list[str]) -> None:
    (finder,) = finders()
    assert finder.find_spec("watched.other") is None
    assert finder.find_spec("json") is None
    other = importlib.import_module("watched.other")
    assert type(other.__loader__) is SourceFileLoader
    assert patched == []


@pytest.mark.usefixtures("hook")
def test_a_reloaded_module_is_patched_again(patched: list[str], folder: Path) -> None:
    one = importlib.import_module("watched.one")
    (folder / "one.py").write_text("value = 'another'\n")
    importlib.reload(one)
    assert patched == ["one", "another"]
    assert type(one.__spec__.loader if one.__spec__ else None) is SourceFileLoader


@pytest.mark.usefixtures("hook")
def test_a_specification_answers_like_the_real_one(patched: list[str], folder: Path) -> None:
    spec = importlib.util.find_spec("watched.one")
    assert spec is not None
    loader: Any = spec.loader
    assert loader.get_source("watched.one") == "value = 'one'\n"
    assert loader.get_filename("watched.one") == spec.origin == str(folder / "one.py")
    assert copy.copy(loader).is_package("watched.one") is False
    assert not hasattr(loader, "no_such_method")
    assert runpy.run_module("watched.one")["value"] == "one"
    assert patched == []  # not imported


@pytest.mark.usefixtures("hook")
def test_a_lazily_loaded_module_is_patched(patched: list[str]) -> None:
    spec = importlib.util.find_spec("watched.one")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["watched.one"] = module
    spec.loader.exec_module(module)
    assert patched == []
    assert module.value == "one"
    assert patched == ["one"]


@pytest.mark.usefixtures("hook")
def test_modules_in_a_zip_file_are_patched(patched: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = folder.parent / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, f"watched/{path.name}")
            path.unlink()
    folder.rmdir()
    monkeypatch.syspath_prepend(archive)
    importlib.import_module("watched.other")
    module = importlib.import_module("watched.one")
    assert str(module.__file__).startswith(str(archive))
    assert patched == ["one"]


class AskingFinder:
    """Delegates to all other finders, as ours does. Two such finders must not cause infinite recursion."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """
        Find a watched module.

        :param name: Full name of the module.
        :param path: Where its package looks for modules.
        :param target: Not used.
        :return: The first answer of the other finders.
        """
        if name not in WATCHED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        answers = (finder.find_spec(name, path, target) for finder in others)
        return next((spec for spec in answers if spec is not None), None)


@pytest.mark.usefixtures("hook")
@pytest.mark.parametrize("place", [0, 1])
def test_it_gets_along_with_a_hook_of_its_kind(patched: list[str], place: int) -> None:
    sys.meta_path.insert(place, AskingFinder())
    assert importlib.import_module("watched.one").value == "one"
    assert patched == ["one"]


@pytest.mark.usefixtures("hook")
def test_finders_and_loaders_of_the_old_kind_do_no_harm(patched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sys.meta_path.insert(1, object())  # type: ignore[arg-type] # what a finder without find_spec looks like to the others
    (finder,) = finders()

    class OldLoader:
        """A loader without ``exec_module``."""

    loader: Any = OldLoader()
    spec = ModuleSpec("watched.one", loader)
    monkeypatch.setattr(PathFinder, "find_spec", lambda *_: spec)
    assert finder.find_spec("watched.one") is spec
    assert spec.loader is loader
    assert patched == []


@pytest.mark.usefixtures("hook")
def test_an_error_in_the_module_is_the_modules_own(patched: list[str], folder: Path) -> None:
    (folder / "one.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("watched.one")
    (folder / "one.py").write_text("value = 'repaired'")
    importlib.invalidate_caches()
    assert importlib.import_module("watched.one").value == "repaired"
    assert patched == ["repaired"]


@pytest.mark.usefixtures("hook")
def test_concurrent_imports_patch_once(patched: list[str], folder: Path) -> None:
    (folder / "one.py").write_text("import time\ntime.sleep(0.05)\nvalue = 'one'")
    threads = [threading.Thread(target=importlib.import_module, args=("watched.one",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert patched == ["one"]


@pytest.mark.usefixtures("hook")
def test_a_failure_is_one_warning_and_the_modules_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: ModuleType) -> None:
        raise KeyError(module.__name__)

    monkeypatch.setattr(patches, "patch", fail)
    with pytest.warns(RuntimeWarning) as caught:
        one, two = (importlib.import_module(name) for name in WATCHED)
    (warning,) = caught
    assert "could not add its algorithms to rl_zoo3, which works without them" in str(warning.message)
    assert "Reason: KeyError: 'watched.one'" in str(warning.message)
    assert (one.value, two.value) == ("one", "two")
    assert finders() == []


@pytest.mark.usefixtures("hook")
def test_a_package_that_is_gone_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_pg.zoo.patches", None)  # marks a module that cannot be imported
    with pytest.warns(RuntimeWarning, match="Reason: ModuleNotFoundError"):
        importlib.import_module("watched.one")


@pytest.mark.usefixtures("hook")
def test_where_warnings_are_errors_the_import_still_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patches, "patch", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importlib.import_module("watched.one").value == "one"
    assert "Reason: TypeError" in capsys.readouterr().err


def test_installing_twice_installs_once(hook: Any) -> None:
    hook.install()
    assert len(finders()) == 1


@pytest.mark.parametrize(("value", "on"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_the_switch(hook: Any, patched: list[str], monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
    monkeypatch.setenv("SB3_PG_NO_AUTOREGISTER", value)
    importlib.import_module("watched.one")  # the switch may come after the interpreter has started
    assert patched == ["one"] * on
    sys.meta_path.remove(*finders())
    hook.install()
    assert len(finders()) == on
