"""Programs and their tests: what the domain `code` judges."""
