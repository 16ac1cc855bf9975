"""The page. Imports only: base, jobs, score, data, trust, runs, model, train, sweep."""
