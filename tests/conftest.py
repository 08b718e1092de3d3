"""What holds for every test: one thread each, and no deadline on a machine that may be busy."""

import os

from hypothesis import settings

# Before torch is imported anywhere. Sums run in one order, and several processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("compass", deadline=None)
settings.load_profile("compass")
