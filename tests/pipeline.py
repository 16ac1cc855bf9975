"""Started by test_environment.py, not collected: runs commands of ours one after another in this one process.

argv: a JSON list of commands, each a list of a script's name and its arguments. What the environment says of
encodings holds from the start of an interpreter, so it needs one of its own, but not one for every script.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ensemble  # noqa: E402
import folds  # noqa: E402
import infer  # noqa: E402
import train_fold  # noqa: E402
from common.base.errors import run_script  # noqa: E402

SCRIPTS = {"folds.py": folds, "train_fold.py": train_fold, "infer.py": infer, "ensemble.py": ensemble}

for command in json.loads(sys.argv[1]):
    sys.argv = [os.fsdecode(part.encode()) for part in command]  # as bytes of a command line become text
    run_script(SCRIPTS[command[0]].main)
