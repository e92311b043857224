"""The errors of MLPacker. One family, shared with the runtime."""

from mlpacker_runtime.errors import (
    BadDescription,
    BadInput,
    EnvironmentFailed,
    MlpackerError,
    ModelFailed,
    NotFound,
    NotProvable,
    Refused,
    StoreFailed,
)

__all__ = [
    "BadDescription",
    "BadInput",
    "EnvironmentFailed",
    "MlpackerError",
    "ModelFailed",
    "NotFound",
    "NotProvable",
    "Refused",
    "StoreFailed",
]
