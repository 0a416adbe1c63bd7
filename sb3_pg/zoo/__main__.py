"""
``python -m sb3_pg.zoo SCRIPT ...``: a script of the RL Zoo with our algorithms, or one that we add to it.

The zoo's scripts are there for places where start-up files are not read, ``pip install --target`` and zip apps. Elsewhere
``python -m rl_zoo3.SCRIPT ...`` does the same.
"""

import difflib
import importlib.util
import re
import runpy
import sys
from pathlib import Path

from sb3_pg.zoo import children
from sb3_pg.zoo.patches import register

_USAGE = """\
usage: python -m sb3_pg.zoo SCRIPT [arguments of the script]

Runs a script of the RL Zoo (rl_zoo3) with the algorithms of sb3_pg, or one that sb3_pg adds to it. `SCRIPT --help` shows the
script's arguments.

scripts: {scripts}"""

# What we add: name and module.
_OURS = {"reevaluate": "sb3_pg.zoo.reevaluate"}


def find_scripts() -> dict[str, str]:
    """
    List what can be run of the zoo, without importing it, and of ours.

    :return: Name of each script and its module; empty if ``rl_zoo3`` is not installed.
    """
    spec = importlib.util.find_spec("rl_zoo3")
    scripts = {}
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in (*Path(folder).glob("*.py"), *Path(folder, "plots").glob("*.py")):
            # One of them, benchmark, has no such guard.
            if re.search(r'__name__ == "__main__"|^args = parser', file.read_text(encoding="utf-8"), re.MULTILINE):
                parts = file.relative_to(folder).with_suffix("").parts
                scripts[file.stem] = ".".join(("rl_zoo3", *parts))
    return dict(sorted({**scripts, **_OURS}.items())) if scripts else {}


def main() -> None:
    """
    Run the script that the command line names.

    :raises SystemExit: With status 2 if it names no script of the zoo, and whenever the script exits.
    """
    scripts = find_scripts()
    usage = _USAGE.format(scripts=", ".join(scripts) or "none, rl_zoo3 is not installed")
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in ("-h", "--help"):
        print(usage)
        return
    if name is None or name not in scripts:
        print(usage, file=sys.stderr)
        if name is not None:
            closest = difflib.get_close_matches(name, scripts, n=1)
            hint = f", did you mean {closest[0]!r}?" if closest else ""
            print(f"error: the zoo has no script {name!r}{hint}", file=sys.stderr)
        sys.exit(2)
    register()
    if name in children.SCRIPTS:
        children.redirect()
    del sys.argv[1]  # The script shall find its own arguments; runpy replaces argv[0].
    runpy.run_module(scripts[name], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
