"""Ten rooms; a room imports only rooms to its left, and nothing here imports a script.

base <- jobs, score <- data <- trust <- runs <- model <- train <- sweep <- report <- scripts

Each script imports this before anything else, so that a missing package is one line and no traceback; of one that is
needed later, run_script says it (common/base/errors.py).
"""

import os
import sys
from importlib.util import find_spec

_NEEDED = {"numpy": "numpy", "pandas": "pandas", "tqdm": "tqdm", "PIL": "pillow", "yaml": "pyyaml"}  # imported: package

if _missing := [package for name, package in _NEEDED.items() if find_spec(name) is None]:
    _remedy = f"pip install {' '.join(_missing)}, or activate the environment that has them, such as .venv"
    print(f"error: {sys.executable}: lacks {', '.join(_missing)}; {_remedy}", file=sys.stderr)
    sys.exit(3)

if sys.platform == "darwin":  # what Apple's GPUs lack, torch does on the CPU, if it is told so before it is loaded
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
