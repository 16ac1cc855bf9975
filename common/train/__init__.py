"""The epoch. Imports only: base, jobs, score, data, runs, model."""
