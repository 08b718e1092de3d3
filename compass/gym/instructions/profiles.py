"""langdetect's profiles, read when this is imported: a worker does so before it starts.

langdetect draws random samples; its own front door seeds nothing, so that one text has two
verdicts. The factory here is our own, so that nobody else's seed changes.
"""

from __future__ import annotations

from typing import Any

from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

_SEED = 0


def _factory() -> Any:
    made = DetectorFactory()
    made.load_profile(PROFILES_DIRECTORY)
    made.set_seed(_SEED)
    return made


FACTORY = _factory()
"""Makes detectors of one text each, all of which draw the same samples."""
