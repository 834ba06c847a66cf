"""The Flower ServerApp: finds the coordinator's folder, and hands over to the round loop."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..study.errors import VoxfedError
from .coordinator import Coordinator
from .examination import Examination
from .exchange import Exchange
from .inquiry import describe
from .rounds import Rounds
from .store import Store
from .superlink import FOLDER_VARIABLE

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the task that `voxfed study run`, `audit run` or `server status` asked for."""
    wanted = context.run_config
    coordinator = Coordinator(Path(os.environ[FOLDER_VARIABLE]))
    exchange = Exchange(grid)
    deadline = float(wanted.get("deadline", 60.0))
    if wanted["task"] == "describe":
        describe(coordinator, exchange, deadline)
        return
    store = Store(coordinator.studies / str(wanted["study"]))
    try:
        if wanted["task"] == "train":
            Rounds(coordinator, exchange, store).train()
        else:
            examination = Examination(coordinator, exchange, store, deadline)
            samples = int(wanted["samples"])
            if wanted["task"] == "audit":
                drawn, judge = (str(wanted[name]) for name in ("drawn", "extractor"))
                examination.audit(
                    samples, Path(drawn) if drawn else None, Path(judge) if judge else None
                )
            else:
                examination.evaluate(samples, Path(str(wanted["extractor"])))
    except VoxfedError as fault:
        store.show(state="failed", error=fault.message, hint=fault.hint, exit_code=fault.exit_code)
        raise
    except Exception as fault:  # the command that waits must learn of it
        store.show(state="failed", error=f"{type(fault).__name__}: {fault}", hint="", exit_code=1)
        raise
