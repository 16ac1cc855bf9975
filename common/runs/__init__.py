"""All that a run leaves on disk; nobody else opens it. Imports only: base, jobs, score, data, trust."""
