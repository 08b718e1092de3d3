"""Constraints on the form of an answer that a program can check (IFEval, arXiv 2311.07911)."""
