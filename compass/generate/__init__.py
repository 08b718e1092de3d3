"""The in-house generator: paged KV cache, continuous batching, recorded routes."""

from compass.generate.generator import Generator, GeneratorConfig
from compass.generate.sequence import Request

__all__ = ["Generator", "GeneratorConfig", "Request"]
