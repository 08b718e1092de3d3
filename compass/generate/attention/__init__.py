"""Attention over pages: the cache, its kernels, and one decoding step that can be recorded."""
