"""Generating in E4M3: numbers, layers, and the view of the trainer's weights."""
