"""From files to rows, folds and batches. Imports only: base, score."""
