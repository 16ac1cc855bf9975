"""The epoch. Imports only: base, jobs, score, data, trust, runs, model."""
