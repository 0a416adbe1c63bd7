"""What happens at interpreter start, and when the RL Zoo is imported."""

import shutil
from collections.abc import Callable

import pytest
from install.environment import Environment

pytestmark = pytest.mark.slow

HEAVY = {"gymnasium", "numpy", "optuna", "pandas", "rl_zoo3", "sb3_contrib", "stable_baselines3", "torch"}
# What Python 3.15 does with a `.start` file (PEP 829), twice, as in a virtual environment.
START = """
import pkgutil, sys
for line in 2 * open(sys.argv[1]).read().split():
    pkgutil.resolve_name(line)()
print(sum(type(finder).__module__ == "_sb3_pg_startup" for finder in sys.meta_path))
"""


def modules_at_start(environment: Environment) -> set[str]:
    """
    Start the interpreter.

    :param environment: The environment.
    :return: Modules that the interpreter has imported at start-up.
    """
    done = environment.python("-c", "import sys; print(*sys.modules)")
    assert done.stderr == ""
    return set(done.stdout.split())


def test_starting_python_prints_and_imports_nothing(installed: Environment) -> None:
    modules = modules_at_start(installed)
    assert "_sb3_pg_startup" in modules
    assert {name.partition(".")[0] for name in modules} & (HEAVY | {"sb3_pg"}) == set()


def test_starting_python_adds_one_module(wheel: Environment, create: Callable[[], Environment]) -> None:
    assert modules_at_start(wheel) - modules_at_start(create()) == {"_sb3_pg_startup"}


def test_the_start_file_does_what_the_pth_file_does(installed: Environment) -> None:
    assert installed.python("-c", START, installed.site / "sb3_pg.start").stdout == "1\n"
    # Without the site module no `.pth` file is read, but the module must still be found.
    done = installed.python("-S", "-c", START, installed.site / "sb3_pg.start", PYTHONPATH=str(installed.site))
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("imports", ["import rl_zoo3.exp_manager, sb3_pg", "import sb3_pg, rl_zoo3"])
def test_the_order_of_imports_does_not_matter(wheel: Environment, imports: str) -> None:
    assert wheel.python("-c", f"{imports}; print(rl_zoo3.ALGOS['vpg'] is sb3_pg.VPG)").stdout == "True\n"


def test_new_processes_know_our_algorithms_too(wheel: Environment) -> None:
    (wheel.work / "parent.py").write_text(
        """
import multiprocessing, sys

def child(results):
    import rl_zoo3
    results.put("vpg" in rl_zoo3.ALGOS)

if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        results = context.Queue()
        process = context.Process(target=child, args=(results,))
        process.start()
        print(method, results.get())
        process.join()
"""
    )
    assert wheel.python("parent.py").stdout == "spawn True\nforkserver True\n"


def test_the_switch(wheel: Environment) -> None:
    code = """
import rl_zoo3, sb3_pg
print("a2c" in rl_zoo3.ALGOS, "vpg" in rl_zoo3.ALGOS)
sb3_pg.register()
print("a2c" in rl_zoo3.ALGOS, "vpg" in rl_zoo3.ALGOS)
"""
    assert wheel.python("-c", code, SB3_PG_NO_AUTOREGISTER="1").stdout == "True False\nTrue True\n"


def assert_one_warning_and_a_working_zoo(environment: Environment, reason: str) -> None:
    """
    Check the output if sb3_pg cannot be imported.

    :param environment: Environment with a broken sb3_pg.
    :param reason: Expected reason in the warning.
    """
    silent = environment.python("-c", "pass")
    assert (silent.stdout, silent.stderr) == ("", "")
    arguments = ("--algo", "a2c", "--env", "CartPole-v1", "-n", "100", "--eval-freq", "-1", "--verbose", "0")
    done = environment.python("-m", "rl_zoo3.train", *arguments)
    assert "Saving to logs/a2c/CartPole-v1_1" in done.stdout
    assert done.stderr.count("sb3_pg could not add its algorithms") == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_dependency(install: Callable[[str], Environment]) -> None:
    environment = install("wheel")
    algorithm = environment.site / "sb3_pg" / "vpg" / "vpg.py"
    algorithm.write_text("import no_such_dependency\n" + algorithm.read_text())
    assert_one_warning_and_a_working_zoo(environment, "ModuleNotFoundError: No module named 'no_such_dependency'")


def test_a_package_folder_deleted_by_hand(install: Callable[[str], Environment]) -> None:
    environment = install("wheel")
    shutil.rmtree(environment.site / "sb3_pg")
    assert_one_warning_and_a_working_zoo(environment, "ModuleNotFoundError: No module named 'sb3_pg'")
    done = environment.python("-c", START, environment.site / "sb3_pg.start")
    assert (done.stdout, done.stderr) == ("1\n", "")
    (environment.site / "_sb3_pg_startup.py").unlink()
    silent = environment.python("-c", "pass")
    assert (silent.stdout, silent.stderr) == ("", "")


def test_without_any_dependency_the_package_can_be_imported(install: Callable[[str], Environment]) -> None:
    environment = install("wheel")
    (environment.site / "dependencies.pth").unlink()
    done = environment.python(
        "-c", "import sb3_pg; print(sb3_pg.__version__ == open(sb3_pg.__path__[0] + '/version.txt').read().strip())"
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
