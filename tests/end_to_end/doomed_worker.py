"""A real worker that is killed in round 2, at a point that its first argument names.

    python doomed_worker.py trained|written|charged SITE

Only the moment of death is added: what runs before it is the worker as it is.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxfed.client.outbox import Outbox
from voxfed.client.processes import run_worker
from voxfed.client.site import Site
from voxfed.privacy.ledger import Ledger, RoundKey

ROUND = 2


def dying(method: Callable[..., Any], *, first: bool) -> Callable[..., Any]:
    """Return `method` with a SIGKILL in round 2: before it where `first`, else after it."""

    def call(owner: object, key: RoundKey, *rest: Any) -> Any:
        done = None if first and key.round == ROUND else method(owner, key, *rest)
        if key.round == ROUND:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return call


if __name__ == "__main__":
    point, folder = sys.argv[1:]
    if point == "trained":  # nothing is on disk yet
        Outbox.put = dying(Outbox.put, first=True)
    elif point == "written":  # the reply lies in the outbox and is not charged
        Outbox.put = dying(Outbox.put, first=False)
    else:  # charged, and the reply was not sent
        Ledger.commit = dying(Ledger.commit, first=False)
    run_worker(Site(Path(folder)))
