"""Compass-Gym: prompt files, verifiers, and the processes that run them. No GPU, no torch."""
