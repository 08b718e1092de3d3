"""Hugging Face model directories: configurations, names and weights, in and out."""
