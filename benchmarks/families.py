"""The families side by side: quality, time, memory and traffic, beside two baselines.

Each family trains on 48 patients in a process of its own and is judged against 24 others, on two
splits that test different patients; each figure stands beside that of the 48 against the 24. With
--all and --long, families that need a condition are told that of the 24 and judged by what they
draw of it, beside a PCA of what they are to draw, which is told nothing.

    python benchmarks/families.py [--all | --long | --quick] [--json]
    python benchmarks/families.py --compare [--long | --quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from parts.cohort import CT, TASKS, Cohort, Task, Volumes, read_volumes, task_of
from parts.material import Job, judge, make_extractor, mean_figures, run_alone, surroundings
from parts.verdict import COPIES, PCA, case_of, reached
from voxfed.models.base import Batch
from voxfed.models.quality.baselines import fit_pca, noisy_copies
from voxfed.models.quality.features import Extractor
from voxfed.models.quality.intervals import Figure
from voxfed.models.registry import names
from voxfed.privacy.audit.copies.search import search
from voxfed.privacy.audit.report import copied_of
from voxfed.privacy.evidence import Copied
from voxfed.privacy.rules.copies import weigh
from voxfed.study.errors import VoxfedError

DEFAULT = ("vae", "wgan-gp", "wavelet-diffusion", "vq-transformer")
COMPONENTS = 24
NOISE = 0.05
SAMPLES = 24


def cases_of(families: Sequence[str]) -> Iterator[tuple[str, Task]]:
    """Yield what is measured, each task's PCA before the families that it is held against."""
    for task in TASKS:
        chosen = [name for name in families if task_of(name) == task]
        copied = [COPIES] if task == CT else []
        yield from ((name, task) for name in (PCA, *copied, *chosen) if chosen)


def baseline(name: str, train: Volumes, fold: int) -> Volumes:
    """Return samples of a baseline."""
    generator = np.random.default_rng(fold)
    if name == PCA:
        return fit_pca(train, COMPONENTS).sample(SAMPLES, generator)
    return noisy_copies(train, SAMPLES, NOISE, generator)


def copies(
    extractor: Extractor, train: Volumes, test: Volumes, samples: Volumes
) -> dict[str, Copied]:
    """Return copies of train and of test patients by likeness, as a site's audit finds them."""
    groups = [
        {str(n): [Batch(torch.from_numpy(one[None]))] for n, one in enumerate(each)}
        for each in (train, test)
    ]
    found = search(
        Batch(torch.from_numpy(samples)),
        *groups,
        extract=extractor.features,
        random_bytes=np.random.default_rng(0).bytes,
    )
    counted = {space: copied_of(copies.counts()) for space, copies in found.spaces.items()}
    return {space: copied for space, copied in counted.items() if copied}


def measure(
    name: str, told: str, cohort: Cohort, extractor: Extractor, folds: int, seconds: float
) -> dict[str, Any]:
    """Return the row of a family or a baseline; a family that fails is a row that says so.

    Args:
        name: of the family or the baseline.
        told: the title of the task.
        cohort: of the task.
        extractor: of the features.
        folds: splits, 1 to 3.
        seconds: of training, over all folds.
    """
    head = {"case": case_of(name, told), "told": told}
    figures: list[list[Figure]] = []
    costs: list[dict[str, float]] = []
    copied: dict[tuple[str, str], Copied] = {}
    for fold in range(folds):
        train, test = cohort.fold(fold)
        try:
            if name in (PCA, COPIES):
                samples, cost = baseline(name, train, fold), {}
            else:
                job = Job(name, train, seconds / folds, SAMPLES, *cohort.told(fold))
                samples, cost = run_alone(job)
            figures.append(judge(extractor, train, test, samples))
            costs.append(cost)
            searched = copies(extractor, train, test, samples)
            copied |= {(f"fold {fold}", space): found for space, found in searched.items()}
        except (VoxfedError, RuntimeError) as fault:  # the latter where memory ran out
            if name in (PCA, COPIES):
                raise
            return {**head, "failed": str(fault).partition("\n")[0]}
    row: dict[str, Any] = {**head, "figures": mean_figures(figures)}
    row |= {key: statistics.mean(cost[key] for cost in costs) for key in costs[0]}
    chances, limit = weigh(copied)
    chance = min(chances.values())
    return row | {"copies_p": chance, "copies": "BLOCK" if chance <= limit else "PASS"}


def show(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    if "failed" in row:
        return f"{row['case']:<32} failed: {row['failed']}"
    found = row["figures"]
    kid, coverage = (
        f"{found[name]['value']:.2f} [{found[name]['low']:.2f}, {found[name]['high']:.2f}]"
        for name in ("KID", "coverage")
    )
    shares = "".join(f"{found[x]['value']:>6.2f}" for x in ("precision", "recall", "density"))
    beside = "".join(
        f"{found[x]['value']:>8.2f} ({found[x]['real']:.2f})"
        for x in ("MS-SSIM between samples", "FID")
    )
    text = f"{row['case']:<32}{kid:>22}{coverage:>20}{shares}{beside}{row['copies']:>7}"
    if "steps" in row:
        text += f"{row['steps']:>7.0f}{row['step_median_s']:>8.3f}{row['peak_mib']:>7.0f}"
        text += f"{row['sample_s']:>8.3f}{row['round_mib']:>7.1f}"
    return text


HEADER = (
    f"{'':<32}{'KID [95 %]':>22}{'coverage [95 %]':>20}{'prec':>6}{'rec':>6}{'dens':>6}"
    f"{'MS-SSIM (real)':>15}{'FID (real)':>16}{'copies':>7}{'steps':>7}{'s/step':>8}{'MiB':>7}"
    f"{'s/vol':>8}{'MiB/rd':>7}"
)


def main() -> None:
    """Run the families and print a table, or one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    size = arguments.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="side 16, one minute in all")
    size.add_argument("--all", action="store_true", help="every family, 10 minutes each")
    size.add_argument("--long", action="store_true", help="an hour each, for a GPU")
    arguments.add_argument("--compare", action="store_true", help="federated beside pooled")
    arguments.add_argument("--json", action="store_true", help="one JSON document")
    wanted = arguments.parse_args()
    if wanted.compare:
        from parts.comparison import FULL, LONG, QUICK, compare_all

        length = QUICK if wanted.quick else LONG if wanted.long else FULL
        compare_all(length, document=wanted.json)
        return
    chosen = names() if wanted.all or wanted.long else DEFAULT
    seconds = 3.0 if wanted.quick else 600.0 if wanted.all else 3600.0 if wanted.long else 120.0
    folds, side = (1, 16) if wanted.quick else (2, 32)
    told, cohort = CT.title, read_volumes(side)
    extractor = make_extractor(16 if wanted.quick else 24, 30 if wanted.quick else 300)
    document = {**surroundings(cohort, extractor), "seconds": seconds, "cases": []}
    if not wanted.json:
        print(f"{document['device']}, {document['threads']} threads; {document['data']}")
        print(
            f"features: {extractor.name}; n = {SAMPLES}; {seconds:g} s a family", HEADER, sep="\n"
        )
    for name, task in cases_of(chosen):
        if task.title != told:
            told, cohort = task.title, read_volumes(side, task)
        document["cases"].append(measure(name, told, cohort, extractor, folds, seconds))
        if not wanted.json:
            print(show(document["cases"][-1]), flush=True)
    document["reach"] = reached(document["cases"])
    if wanted.json:
        print(json.dumps(document, indent=1))
        return
    for what, line in document["reach"].items():
        state = "holds" if line["holds"] else "MISSED"
        print(f"{what}: {line['value']}, limit {line['limit']} {line['unit']}: {state}")


if __name__ == "__main__":
    main()
