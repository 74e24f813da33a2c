"""What a body leaves on its card: memory that torch and paddle keep for later, which the next program needs."""

from __future__ import annotations

import gc
import sys
from typing import Any


def free_gpu_memory() -> None:
    """Free what torch and paddle keep, if the program has loaded them; called after the lease was given back."""
    torch: Any = getattr(sys.modules.get("torch"), "cuda", None)
    paddle: Any = getattr(getattr(sys.modules.get("paddle"), "device", None), "cuda", None)
    if torch is None and paddle is None:
        return
    gc.collect()
    if torch is not None and torch.is_initialized():
        torch.empty_cache()
    if paddle is not None:
        paddle.empty_cache()
