"""The net, what it minimises, how it moves, which weights stay. Imports only: base, jobs, score, data, trust, runs."""
