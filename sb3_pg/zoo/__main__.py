"""
``python -m sb3_pg.zoo SCRIPT ...``: run a script of the RL Zoo with our algorithms, or one of our own scripts.

The launcher is needed where start-up files are not read (``pip install --target``, zip apps). Elsewhere
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

Run a script of the RL Zoo (rl_zoo3) with the algorithms of sb3_pg, or a script that sb3_pg adds to the zoo. `SCRIPT --help`
shows the arguments of the script.

scripts: {scripts}"""

# Scripts of our own: name and module.
_OURS = {"reevaluate": "sb3_pg.zoo.reevaluate"}


def find_scripts() -> dict[str, str]:
    """
    List the scripts of the zoo, without importing it, and our own.

    :return: Mapping from the name of a script to its module; empty if ``rl_zoo3`` is not installed.
    """
    spec = importlib.util.find_spec("rl_zoo3")
    scripts = {}
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in (*Path(folder).glob("*.py"), *Path(folder, "plots").glob("*.py")):
            # benchmark has no `__main__` guard.
            if re.search(r'__name__ == "__main__"|^args = parser', file.read_text(encoding="utf-8"), re.MULTILINE):
                parts = file.relative_to(folder).with_suffix("").parts
                scripts[file.stem] = ".".join(("rl_zoo3", *parts))
    return dict(sorted({**scripts, **_OURS}.items())) if scripts else {}


def main() -> None:
    """
    Run the script that the command line names.

    :raises SystemExit: With status 2 if there is no such script, and whenever the script exits.
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
        children.patch_subprocess()
    del sys.argv[1]  # The script parses the rest; runpy replaces argv[0].
    runpy.run_module(scripts[name], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
