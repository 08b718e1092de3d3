"""The torchtitan names Compass builds on, in one place (torchtitan's API moves: pinned exactly).

Some names that torchtitan asks for are not everywhere; none of them matters here, so inert
stand-ins take their place before the first import:

- `minimal_async_ep.kernels` needs triton (absent from CPU builds of torch);
- `torch.distributed.fsdp.DataParallelMeshDims`, an annotation, is missing in torch 2.11;
- `torch.compiler._is_non_strict_tracing`, asked in the all-to-all, likewise. Nothing is traced.
"""

import importlib.util
import sys
from types import ModuleType

import torch.compiler
import torch.distributed.fsdp


class _Inert(ModuleType):
    """A module whose every public attribute is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


if importlib.util.find_spec("triton") is None:
    _KERNELS = "torchtitan.distributed.minimal_async_ep.kernels"
    sys.modules[_KERNELS] = _Inert(_KERNELS)
if not hasattr(torch.distributed.fsdp, "DataParallelMeshDims"):
    torch.distributed.fsdp.DataParallelMeshDims = None  # type: ignore[misc,assignment]
if not hasattr(torch.compiler, "_is_non_strict_tracing"):
    torch.compiler._is_non_strict_tracing = lambda: False

from torchtitan.distributed.utils import set_spmd_backend  # noqa: E402
from torchtitan.models.common import CosSinRoPE, Embedding, Linear  # noqa: E402
from torchtitan.models.common.attention import BaseQKVLinear, GQAttention  # noqa: E402
from torchtitan.models.common.feed_forward import FeedForward  # noqa: E402
from torchtitan.models.common.moe import (  # noqa: E402
    GroupedExperts,
    RoutedExperts,
    TokenChoiceTopKRouter,
)
from torchtitan.models.common.nn_modules import RMSNorm  # noqa: E402
from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher  # noqa: E402
from torchtitan.protocols.module import Module  # noqa: E402

# The default backend expects every parameter to be a DTensor of torchtitan's own making;
# Compass shards by itself (models/parallel.py).
set_spmd_backend("partial_dtensor")

__all__ = [
    "AllToAllTokenDispatcher",
    "BaseQKVLinear",
    "CosSinRoPE",
    "Embedding",
    "FeedForward",
    "GQAttention",
    "GroupedExperts",
    "Linear",
    "Module",
    "RMSNorm",
    "RoutedExperts",
    "TokenChoiceTopKRouter",
]
