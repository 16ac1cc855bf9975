"""Nine rooms; a room imports only rooms to its left, and nothing here imports a script.

base <- jobs, score <- data <- runs <- model <- train <- sweep <- report <- scripts
"""
