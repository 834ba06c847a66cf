"""`voxfed evaluate`: how good a study's samples are, asked where the patients are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..study.errors import Refusal, UsageError
from ..study.terminal import console, progress, show_json, show_table
from .options import HERE, AsJson, Folder, Name, open_coordinator, open_store

if TYPE_CHECKING:
    from ..study.figures import FigureRow
    from .coordinator import Coordinator
    from .evaluation import EvaluationReport, Gap, SiteEvaluation

LEAST_SIDE = 16
MOST_SIDE = 32
"""Voxels of a phantom's side: at this one an encoder learns in minutes on one core."""


def evaluate(
    study: Name,
    folder: Folder = HERE,
    samples: Annotated[
        int, typer.Option(min=8, max=512, help="Synthetic volumes that each site draws.")
    ] = 64,
    extractor: Annotated[
        Path | None,
        typer.Option(help="Weights of a feature extractor; left out, one learns from phantoms."),
    ] = None,
    deadline: Annotated[float, typer.Option(help="Seconds to wait for the sites.")] = 86400.0,
    as_json: AsJson = False,
) -> None:
    """Measure fidelity, diversity and utility of the last weights on each site's own patients."""
    from .evaluation_page import report_evaluation
    from .runs import submit_and_follow

    coordinator = open_coordinator(folder)
    store = open_store(coordinator, study)
    plan = store.plan
    if not plan.privacy.evaluations:
        raise Refusal(
            "the plan allows no evaluation",
            got="privacy.evaluations = 0",
            expected="1 or more",
            hint="what leaves a hospital is agreed before training: offer a study that allows it",
        )
    if min(plan.volumes.shape) < LEAST_SIDE:
        raise UsageError(
            "feature extractors cannot pass such small volumes",
            got=plan.volumes.shape,
            expected=f"{LEAST_SIDE} voxels a side or more",
            hint="plan the next study with more voxels, at a smaller volumes.spacing if the field"
            " of view is to stay; this one's models can be audited and released, but not judged",
        )
    shape = phantom_shape(plan.volumes.shape)
    judge = extractor_file(coordinator, extractor, shape, hidden=as_json)
    with progress(f"{study}: evaluation", hidden=as_json) as shown:

        def watch(facts: dict[str, Any]) -> None:
            waiting = facts.get("waiting", [])
            shown(0, 1, title=f"waiting for {', '.join(waiting)}" if waiting else "evaluation")

        task: dict[str, str | int | float | bool] = {
            "task": "evaluation", "deadline": deadline, "samples": samples, "extractor": str(judge),
        }  # fmt: skip
        done = submit_and_follow(coordinator, store, task, watch)
    target = Path(done["folder"])
    report = report_evaluation(coordinator, store, target, judge)
    if as_json:
        show_json({"folder": str(target), **_document(report)})
    else:
        _show(report)
        console.print(f"the page is {target / 'evaluation.html'}")


def phantom_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return (D, H, W) of the phantoms to learn from: a study's grid, at most `MOST_SIDE` a side.

    Volumes of other shapes can be passed, and are told apart best up to four thirds of it.
    """
    return tuple(min(side, MOST_SIDE) for side in shape)


def extractor_file(
    coordinator: Coordinator, chosen: Path | None, shape: Sequence[int], *, hidden: bool = False
) -> Path:
    """Return the file of the extractor that is asked for, or of one that learned from phantoms.

    An encoder is trained once for each shape, always from the same seed, and kept.

    Args:
        coordinator: whose folder keeps encoders.
        chosen: the file that is asked for, if one is.
        shape: (D, H, W) of the phantoms to learn from.
        hidden: whether nothing is printed.

    Raises:
        UsageError: there is no such file, or it is no extractor.
    """
    from ..models.quality.features import read_extractor
    from ..study.files import digest

    if chosen is not None:
        if not chosen.is_file():
            raise UsageError(f"there is no file {chosen}", hint="name an extractor's weights")
        found = read_extractor(chosen.read_bytes(), digest(chosen))
        if not hidden:
            console.print(f"{found.name}, sha256 {found.digest}")
        return chosen.resolve()
    sides = "x".join(map(str, shape))
    path = coordinator.folder / "extractors" / f"phantoms-{sides}.safetensors"
    if not path.exists():
        import torch

        from ..models.quality.contrast import train_encoder

        with progress("an extractor learns from phantoms", hidden=hidden) as shown:
            train_encoder(
                shape,
                generator=torch.Generator().manual_seed(0),
                progress=lambda step, steps, _: shown(step, steps),
            ).save(path)
    return path


def _document(report: EvaluationReport) -> dict[str, Any]:
    """Return the report without the signed messages."""
    return report.model_dump(mode="json", exclude={"sites": {"__all__": {"request", "reply"}}})


def _show(report: EvaluationReport) -> None:
    from .evaluation import NOTES

    rows = []
    for row in report.together:
        if row.group != "all":
            continue
        own = [_cell(site.figure(row.name)) for site in report.sites]
        worst = report.worst[row.name] if len(report.sites) > 1 else ""
        rows.append((row.name, row.better, *own, _cell(row), worst))
    sites = [site.site for site in report.sites]
    title = f"{report.study}, round {report.round}, features: {report.extractor}"
    show_table(title, ("figure", "better", *sites, "together", "worst"), rows)
    for answer in report.sites:
        console.print(f"{answer.site}: {cost_of(answer)}")
    if report.gaps:
        columns = ("site", "sex", "age")
        shown = [
            (name, *(_gap(gaps.get(attribute)) for attribute in columns))
            for name, gaps in report.gaps_by_name.items()
        ]
        show_table("largest gaps", ("figure", *columns), shown)
    for line in report.notes[len(NOTES) :]:
        console.print(line)
    for site, code in report.refused.items():
        console.print(f"{site} did not answer: {code}")


def cost_of(answer: SiteEvaluation) -> str:
    """Return what one sample costs at a site: seconds, 10^9 operations and peak memory."""
    peak = answer.memory
    memory = "memory not measured" if peak is None else f"{peak / 2**20:.3g} MiB"
    return f"{answer.seconds:.3g} s a sample, {answer.flops / 1e9:.3g} GFLOP, {memory}"


def _cell(row: FigureRow | None) -> str:
    if row is None:
        return "not given"
    real = "" if row.real is None else f", real {row.real:.3g}"
    return f"{row.value:.3g} ({row.low:.3g} to {row.high:.3g})\nn {row.n}{real}"


def _gap(gap: Gap | None) -> str:
    if gap is None:
        return ""
    (least, low), (most, high) = gap.least, gap.most
    return f"{high - low:.3g} ({least} {low:.3g}, {most} {high:.3g})"
