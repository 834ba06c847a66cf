"""The model card says what is known of the weights, and nothing that is not."""

from __future__ import annotations

from typing import Any

from voxfed.privacy.model_card import model_card
from voxfed.privacy.quality import Quality


def section(card: str, title: str) -> str:
    """Return what stands under a heading."""
    return card.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0]


def test_quality_gives_each_figure_with_interval_n_and_the_worst_hospital(
    scene: Any, plan: Any
) -> None:
    """Figures are those of the evaluation, real against real beside them."""
    people = scene()
    quality = Quality.from_text(people.evaluation())
    words = section(model_card(plan(), people.report(plan()), quality), "Quality")
    assert "| KID | lower | 1.5 (1 to 2) | 40 | 0.25 | north: 2 |" in words
    assert "held-out patients of harbour, north" in words
    assert "Not evaluated at valley: not-approved." in words
    assert "epsilon does not cover them" in words


def test_quality_that_was_not_measured_says_how(scene: Any, plan: Any) -> None:
    """No figure is made up where nobody evaluated."""
    card = model_card(plan(), scene().report(plan()))
    assert section(card, "Quality").startswith("Not measured: run `voxfed evaluate trunks`")


def test_the_best_proved_bound_stands_beside_the_accounted_one(scene: Any, plan: Any) -> None:
    """Upper and lower bound, the latter with the most that so many patients could prove."""
    report = scene(patients=60, leak=4.0).report(plan())
    best = max(report.bounds, key=lambda bound: bound.general)
    assert best.general > 0.5
    words = section(model_card(plan(), report), "Privacy")
    assert "Accounted upper bound (proof): epsilon 7.5" in words
    proved = f"epsilon at least {best.general:.2f} at delta 0.001 with 95 % confidence"
    assert f"{proved}, by {best.score} at {best.site}" in words
    assert f"could prove at most {best.cap:.2f};" in words
    assert f"at least {best.gaussian:.2f} of at most {best.gaussian_cap:.2f}" in words


def test_counts_that_allow_no_bound_prove_none(scene: Any, plan: Any) -> None:
    """Noised counts are no guesses."""
    study = plan(counts="noised")
    words = section(model_card(study, scene().report(study)), "Privacy")
    assert "Proved lower bound on epsilon: none" in words


def test_unlearning_is_told_only_as_far_as_it_is_known(scene: Any, plan: Any) -> None:
    """Nobody asked, nobody knows, and somebody was forgotten are three things."""
    report = scene().report(plan())
    unknown, nobody, somebody = (
        section(model_card(plan(), report, forgotten=told), "Unlearning history")
        for told in (None, (), ("request 7: one patient, by rebuilding",))
    )
    assert unknown == "Not recorded."
    assert nobody == "No patient and no hospital has asked to be forgotten."
    assert somebody == "- request 7: one patient, by rebuilding"
