"""Evidence from PyTorch. A witness never shares code with what it checks, and must be able to disagree."""
