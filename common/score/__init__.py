"""What an answer is and how good it is, in numpy. Imports only: base."""
