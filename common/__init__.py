"""Nine rooms; a room imports only rooms to its left, and nothing here imports a script.

base <- jobs, score <- data <- runs <- model <- train <- sweep <- report <- scripts
"""

import os
import sys

if sys.platform == "darwin":  # what Apple's GPUs lack, torch does on the CPU, if it is told so before it is loaded
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
