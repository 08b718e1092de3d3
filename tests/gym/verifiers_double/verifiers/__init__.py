"""Stands in for the verifiers package where it is not installed."""
