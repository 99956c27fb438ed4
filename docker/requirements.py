"""Print requirement lists of pyproject.toml for pip: `requirements.py core scheduler`.

`core` is what every part needs, any other name is an extra. The images install them before the sources are copied, so
that a change of the sources does not install everything again.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
groups = {"core": project["dependencies"], **project["optional-dependencies"]}
for name in sys.argv[1:]:
    sys.stdout.writelines(f"{requirement}\n" for requirement in groups[name])
