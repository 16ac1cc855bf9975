"""What any program needs and nothing of learning. Imports only: nothing of ours."""
