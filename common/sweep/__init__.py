"""Learning rate x batch size. Imports only: base, jobs, score, data, trust, runs, model, train."""
