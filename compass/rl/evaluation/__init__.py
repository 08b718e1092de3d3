"""Evaluation: what is asked of a model, how its samples are judged and summed up."""
