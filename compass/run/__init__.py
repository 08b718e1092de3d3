"""A training run in its folder: what it goes on from, what it keeps, and when it ends."""
