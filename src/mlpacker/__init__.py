"""Pack a trained pipeline once; run it anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlpacker_runtime import __version__

if TYPE_CHECKING:
    from .app import Mlpacker, Opened, open, pack

__all__ = ["Mlpacker", "Opened", "__version__", "open", "pack"]


def __getattr__(name: str) -> Any:
    """The SDK, imported when it is first used: the command line must start quickly."""
    if name in __all__:
        from . import app

        return getattr(app, name)
    raise AttributeError(f"module 'mlpacker' has no attribute {name!r}")
