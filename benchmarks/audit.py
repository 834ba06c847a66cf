"""What the audit finds, what it wrongly finds, and what it takes.

Models that learn 20 phantoms by heart are attacked after more and more steps, beside 20 that they
never saw; models trained at epsilon 3 and simulated audits without a leak must be let go; replayed
patients must be caught; and the default audit of a diffusion model is timed, by the clock.

    python benchmarks/audit.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from parts.leaks import REPLAYS, null_audit
from parts.material import draw, make_extractor, plan_of
from parts.pupils import EPSILON, PATIENTS, PUPILS, SIDE, coins, overtrain, privately
from torch import Tensor
from voxfed.models.base import Batch, Family
from voxfed.models.conditioning import conditioning_of
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.models.quality.features import Extractor
from voxfed.models.registry import build
from voxfed.privacy.audit.attack import Attacked, Groups, attack
from voxfed.privacy.audit.copies import synthetic
from voxfed.privacy.audit.copies.search import search
from voxfed.privacy.audit.report import copied_of
from voxfed.privacy.audit.scores.score import BLIND
from voxfed.privacy.audit.witness import evidence
from voxfed.privacy.finding import Verdict
from voxfed.privacy.release import decide
from voxfed.privacy.rules.copies import weigh

SAMPLES = 40
AUDITED, DRAWN, LARGE = 100, 200, 32
"""Members, and as many held out; synthetic volumes; and the side of the audit that is timed."""
LIMITS = {
    "overtrained_auc_min": (0.8, "AUC of the best score, at least"),
    "overtrained_blocked": (1.0, "share of the over-trained models, at least"),
    "private_not_blocked": (1.0, "share of the models at epsilon 3, at least"),
    "null_false_alarm": (0.05, "share of audits without a leak, at most"),
    "replay_caught": (1.0, "share of the strengths, at least"),
    "audit_minutes": (10.0, "minutes, at most"),
}
MOST = "null_false_alarm", "audit_minutes"


class Length(NamedTuple):
    """How much is measured: families, points of each curve, most models at each point, and so on.

    The audit that is timed has a side, and its search is given a share of the patients.
    """

    families: tuple[str, ...]
    points: int
    models: int
    rounds: int
    null_audits: int
    replays: int
    side: int
    share: float


FULL = Length(tuple(PUPILS), 3, 3, 10, 200, len(REPLAYS), LARGE, 0.5)
QUICK = Length(("vae",), 1, 1, 1, 40, 3, LARGE // 2, 0.3)


class Found(NamedTuple):
    """An attack, and the seconds that each of its parts took."""

    attacked: Attacked
    seconds: dict[str, float]


def assail(family: Family, groups: Groups, made: Tensor, extractor: Extractor) -> Found:
    """Attack a model as a site does, and time it."""
    began: list[tuple[float, str]] = []
    found = attack(
        family.eval(),
        groups,
        Batch(made),
        seed=0,
        extract=extractor.features,
        progress=lambda done, of, part: began.append((time.perf_counter(), part)),
    )
    ends = [second for second, _ in began[1:]] + [time.perf_counter()]
    return Found(found, {part: end - one for (one, part), end in zip(began, ends, strict=True)})


def judged(
    found: Attacked, trained: int, epsilon: float | None
) -> tuple[Verdict, dict[str, float]]:
    """Return the gate's verdict and the AUC of each score."""
    facts = evidence({"site": found}, trained, epsilon=epsilon)
    aucs = {one.score: one.auc.value for one in (*facts.memberships, *facts.blind)}
    return decide(facts)[0], aucs


def measure(
    case: str,
    taught: Callable[[int], tuple[Family, Groups]],
    models: int,
    extractor: Extractor,
    epsilon: float | None = None,
) -> dict[str, Any]:
    """Return a row: the share that is blocked, each score's mean AUC, seconds per volume."""
    verdicts, areas, seconds = [], [], []
    for seed in range(models):
        family, groups = taught(seed)
        made = torch.from_numpy(draw(family, SAMPLES, torch.device("cpu")))
        found = assail(family, groups, made, extractor)
        verdict, aucs = judged(found.attacked, PATIENTS, epsilon)
        verdicts.append(verdict)
        areas.append(aucs)
        seconds.append({x: s / (2 * PATIENTS) for x, s in found.seconds.items()})
    return {
        "case": case,
        "epsilon": epsilon,
        "blocked": verdicts.count(Verdict.BLOCK) / models,
        "best_auc_min": min(max(a for x, a in aucs.items() if x != BLIND) for aucs in areas),
        "auc": {x: statistics.mean(aucs[x] for aucs in areas) for x in areas[0]},
        "seconds_per_volume": {x: min(one[x] for one in seconds) for x in seconds[0]},
    }


def null_false_alarm(audits: int) -> float:
    """Return the share of simulated audits without a leak that end in BLOCK or INVALID."""
    generator = np.random.default_rng(0)
    wrong = Verdict.BLOCK, Verdict.INVALID
    return sum(decide(null_audit(generator))[0] in wrong for _ in range(audits)) / audits


def replay_caught(strengths: int, extractor: Extractor) -> dict[str, float]:
    """Return the gate's p-value over its limit, by the strength at which members are replayed."""
    volumes = draw_phantoms(2 * PATIENTS, (SIDE,) * 3, np.random.default_rng(0))
    groups, members = coins(volumes, 0)
    found = {}
    for name in list(REPLAYS)[:: -(-len(REPLAYS) // strengths)]:
        made = Batch(REPLAYS[name](members))
        looked = search(made, groups.members, groups.non_members, extract=extractor.features)
        counted = {("site", x): copied_of(one.counts()) for x, one in looked.spaces.items()}
        chances, limit = weigh({place: one for place, one in counted.items() if one})
        found[name] = min(chances.values()) / limit
    return found


def audit_minutes(side: int, share: float, extractor: Extractor) -> dict[str, float]:
    """Return the minutes of the default audit of a 32-voxel diffusion model of default size.

    Scores are measured on five of 100 patients a group and synthetic volumes on two of 200, both
    scaled; so is the search, by the square of the share of the patients that it is given. A
    smaller side is scaled by its voxels, which says too much.
    """
    family, shape = build(plan_of("diffusion", side, trained="all")).eval(), (side,) * 3
    takes = conditioning_of(family, shape)
    began = time.perf_counter()
    synthetic.draw(family, takes, "0", 0)
    handful = time.perf_counter() - began
    made = handful * (DRAWN / synthetic.HANDFUL + synthetic.FEWEST_CHECKED)
    few = AUDITED // 20
    n, drawn = round(share * AUDITED), round(share * DRAWN)
    volumes = draw_phantoms(2 * max(n, few) + drawn, shape, np.random.default_rng(0))
    samples = volumes[-drawn:]
    groups, _ = coins(volumes[: 2 * few], 0)
    parts = assail(family, groups, samples, extractor).seconds
    scores = sum(s for part, s in parts.items() if part != "copies") * AUDITED / few
    groups, _ = coins(volumes[: 2 * n], 0)
    began = time.perf_counter()
    search(
        Batch(samples),
        groups.members,
        groups.non_members,
        extract=extractor.features,
        family=family,
    )
    searched = (time.perf_counter() - began) / share**2
    named = {"synthetic volumes": made, "scores": scores, "search for copies": searched}
    return {name: seconds / 60 * (LARGE / side) ** 3 for name, seconds in named.items()}


def reached(values: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return what is to be reached."""
    found = {}
    for name, value in values.items():
        limit, unit = LIMITS[name]
        holds = value <= limit if name in MOST else value >= limit
        found[name] = {"value": value, "limit": limit, "unit": unit, "holds": holds}
    return found


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Return a family's table: the share that is blocked, and each score's AUC, by case."""
    last = rows[-1]
    head = "".join(f"{row['case'].partition(', ')[2]:>12}" for row in rows)
    blocked = "".join(f"{row['blocked']:>12.0%}" for row in rows)
    lines = [f"{last['case'].partition(',')[0]:<26}{head}{'s a volume':>12}"]
    lines.append(f"{'blocked':<26}{blocked}")
    for name in last["auc"]:
        areas = "".join(f"{row['auc'][name]:>12.2f}" for row in rows)
        lines.append(f"{name:<26}{areas}{last['seconds_per_volume'].get(name, 0):>12.3f}")
    return "\n".join(lines)


def main() -> None:
    """Run all and print a table, or one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="a minute in all")
    arguments.add_argument("--json", action="store_true", help="one JSON document")
    wanted = arguments.parse_args()
    length = QUICK if wanted.quick else FULL
    extractor = make_extractor(SIDE, 30 if wanted.quick else 100)
    cases: list[dict[str, Any]] = []
    for name in length.families:
        rows: list[dict[str, Any]] = []
        models = min(length.models, PUPILS[name].models)
        for steps in PUPILS[name].steps[-length.points :]:
            taught = partial(overtrain, name, steps)
            row = measure(f"{name}, {steps} steps", taught, models, extractor)
            rows.append({**row, "overtrained": steps == PUPILS[name].steps[-1]})
        taught = partial(privately, name, length.rounds)
        row = measure(f"{name}, epsilon {EPSILON:g}", taught, 1, extractor, EPSILON)
        rows.append({**row, "overtrained": False})
        cases += rows
        if not wanted.json:
            print(show(rows), flush=True)
    replays = replay_caught(length.replays, extractor)
    minutes = audit_minutes(length.side, length.share, extractor)
    last = [row for row in cases if row["overtrained"]]
    private = [row for row in cases if row["epsilon"]]
    reach = reached(
        {
            "overtrained_auc_min": min(row["best_auc_min"] for row in last),
            "overtrained_blocked": min(row["blocked"] for row in last),
            "private_not_blocked": 1 - max(row["blocked"] for row in private),
            "null_false_alarm": null_false_alarm(length.null_audits),
            "replay_caught": statistics.mean(ratio <= 1 for ratio in replays.values()),
            "audit_minutes": sum(minutes.values()),
        }
    )
    cases.append({"case": "replays, p over the limit", **replays})
    cases.append({"case": "audit at 32 voxels, minutes", **minutes})
    if wanted.json:
        versions = {name: version(name) for name in ("voxfed", "torch", "monai")}
        device = platform.processor() or "cpu"
        document = {"device": device, "versions": versions, "cases": cases, "reach": reach}
        print(json.dumps(document, indent=1))
        return
    for case in cases[-2:]:
        told = ", ".join(f"{x} {case[x]:.2g}" for x in case if x != "case")
        print(f"{case['case']}: {told}")
    for what, line in reach.items():
        state = "holds" if line["holds"] else "MISSED"
        print(f"{what}: {line['value']:.3g}, {line['unit']} {line['limit']}: {state}")


if __name__ == "__main__":
    main()
