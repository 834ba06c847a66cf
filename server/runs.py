"""Runs: what the commands ask of the running SuperLink, and how they watch it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..study.errors import ProcessError, VoxfedError
from .control import Control
from .coordinator import Coordinator
from .store import Store

POLL = 0.3
STATUS_EVERY = 3.0


def submit_and_follow(
    coordinator: Coordinator,
    store: Store,
    run_config: dict[str, str | int | float | bool],
    watch: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Submit a run, pass each change of the study's progress to `watch`, and return the last.

    Ctrl-C stops the run at the coordinator too.

    Raises:
        VoxfedError: what the run failed with, its exit code kept.
        ProcessError: no SuperLink answers, or the ServerApp was killed.
    """
    control = Control(coordinator.folder, coordinator.settings.port)
    store.show(state="submitted")
    run_id = control.submit({**run_config, "study": store.folder.name})
    seen: dict[str, Any] = {}
    asked = time.monotonic()
    try:
        while True:
            progress = store.progress()
            if progress != seen:
                seen = progress
                watch(progress)
            if progress.get("state") in ("finished", "audited", "evaluated"):
                return progress
            if progress.get("state") == "failed":
                raise _failure(progress)
            if time.monotonic() - asked > STATUS_EVERY:
                asked = time.monotonic()
                status = control.run_status(run_id)
                if status.finished and store.progress() == seen:
                    raise ProcessError(
                        "the run ended before the study did",
                        got=status.outcome,
                        hint="nothing is lost: run the same command again",
                    )
            time.sleep(POLL)
    except KeyboardInterrupt:
        control.stop_run(run_id)
        store.show(state="stopped")
        raise


def describe_sites(coordinator: Coordinator, deadline: float = 30.0) -> None:
    """Ask every site for its description and wait until the run is over."""
    control = Control(coordinator.folder, coordinator.settings.port)
    run_id = control.submit({"task": "describe", "deadline": deadline})
    ends = time.monotonic() + deadline + 30.0
    while not control.run_status(run_id).finished and time.monotonic() < ends:
        time.sleep(0.5)


def _failure(progress: dict[str, Any]) -> VoxfedError:
    error = VoxfedError(str(progress.get("error", "the run failed")), hint=progress.get("hint", ""))
    error.exit_code = int(progress.get("exit_code", 1))
    return error
