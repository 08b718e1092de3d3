"""Calls of functions that a prompt offers: how a completion writes them, and which are right."""
