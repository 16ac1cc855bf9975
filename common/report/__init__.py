"""The page. Imports only: base, jobs, score, data, runs, model, train, sweep."""
