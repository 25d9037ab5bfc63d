"""Which errors say that another process is gone: a fault of the machines, after which the same work may go well."""

import re

from torch.distributed import DistError

from pipeline.data.loader import WorkerLost
from pipeline.together import RankFailedError

# Gloo has no exceptions of its own.
_GLOO = re.compile(r"gloo/|Connection (closed|reset) by peer|\[c10d\]|ProcessGroup(Gloo|NCCL)")


def is_loss(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that a process of the same job ended or does not answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DistError | WorkerLost | RankFailedError):
            return True
        if isinstance(cause, RuntimeError) and _GLOO.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
