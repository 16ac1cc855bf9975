"""Commands side by side on cores, GPUs or a cluster. Imports only: base."""
