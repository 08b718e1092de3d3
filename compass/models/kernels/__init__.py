"""Triton kernels of the policy, one operation a file: what takes many launches of PyTorch's own.

A decode step is mostly launches, and an update mostly memory traffic; each of these goes over its
rows once. They need a CUDA device (or Triton's interpreter, in tests). What calls them says beside
the call what they mean, in PyTorch's operations, which every other device runs.
"""

DEVICES = {"cuda"}
"""Device types that run them; elsewhere PyTorch does the same in more steps."""
