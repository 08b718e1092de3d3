"""Processes in which verifiers run, and can be killed."""
