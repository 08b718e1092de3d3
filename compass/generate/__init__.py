"""Paged generation: requests in, completions out as each one ends."""
