"""Learning rate x batch size. Imports only: base, jobs, score, data, runs, model, train."""
