"""Says how to install TorchRec where it is missing."""

from __future__ import annotations

import warnings
from types import ModuleType

from packedbag.core.errors import PackedBagError

#: torch, FBGEMM and TorchRec fit each other in these versions only; their own requirements would bring CUDA packages.
INSTALL = "pip install --no-deps -r requirements/torchrec.txt"


class MissingTorchRecError(PackedBagError, ImportError):
    """TorchRec or FBGEMM cannot be imported."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"packed tables on several machines need TorchRec, which cannot be imported ({why}). Run: {INSTALL} "
            f"(in a checkout of packedbag; docs/distributed.md lists the packages)."
        )


def import_torchrec() -> ModuleType:
    """Return the module ``torchrec``.

    Raises:
        MissingTorchRecError: it cannot be imported; says how to install it.
    """
    try:
        with warnings.catch_warnings():  # FBGEMM warns of each of its parts that this build lacks
            warnings.simplefilter("ignore")
            import torchrec
            import torchrec.distributed
    except ImportError as error:
        raise MissingTorchRecError(f"{type(error).__name__}: {error}") from error
    module: ModuleType = torchrec
    return module
