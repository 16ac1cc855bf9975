"""What the scripts share: one noun a file. Scripts import from here; nothing here imports a script."""
