"""Whether a score can be trusted: near-duplicates, leaks, train against test. Imports only: base, score, data."""
