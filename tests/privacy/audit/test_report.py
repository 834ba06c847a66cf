"""The report rests on signed replies only, and the page shows what it holds and fetches nothing."""

import html
import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from voxfed.privacy.audit.coverage import REPLAYS
from voxfed.privacy.audit.membership import RECONSTRUCTION
from voxfed.privacy.audit.page import write_page
from voxfed.privacy.audit.report import AuditReport, build_report
from voxfed.privacy.finding import Verdict
from voxfed.privacy.model_card import model_card
from voxfed.study.errors import VerificationError
from voxfed.study.messages import ScoreCounts

PNG = b"\x89PNG a picture"


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that what opens is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the tag."""
        self.names.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag that closes itself, as in SVG."""
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        """Checks that the last opened tag closes."""
        assert self.open.pop() == tag


def test_few_patients_give_a_warning_and_worst_site_comes_first(scene: Any, plan: Any) -> None:
    report = scene().report(plan())
    assert report.verdict is Verdict.WARN
    lows = [m.corrected.low for m in report.memberships]
    assert lows == sorted(lows, reverse=True)
    order = [m.site for m in report.memberships if m.site in {s.site for s in report.sites}]
    assert [site.site for site in report.sites] == order
    assert report.epsilon == 7.5
    assert report.sites[0].members == report.sites[0].non_members == 10


def test_enough_patients_without_a_leak_pass(scene: Any, plan: Any, copies: Any) -> None:
    assert (
        scene(patients=150, copies=copies(3, 4, 150, 4000)).report(plan()).verdict is Verdict.PASS
    )


def test_a_leaking_model_is_blocked_even_with_ten_patients_a_site(scene: Any, plan: Any) -> None:
    report = scene(leak=6.0, epsilon=None).report(plan(enabled="false", allowed="true"))
    blocked = {f.rule for f in report.findings if f.verdict is Verdict.BLOCK}
    assert blocked == {"membership, worst site"}


def test_groups_that_differ_by_themselves_make_the_audit_invalid(scene: Any, plan: Any) -> None:
    """Shifted non-members look like a leak, or hide one: that is not a PASS, and not a BLOCK."""
    report = scene(patients=60, blind=2.0, copies={}).report(plan())
    assert report.verdict is Verdict.INVALID
    page = write_page(report)
    assert "this audit cannot tell" in page
    unmeasured = scene(patients=60, blind=None).report(plan())
    assert {f.verdict for f in unmeasured.findings if f.rule == "blind baseline"} == {Verdict.WARN}


def test_an_attack_above_what_epsilon_allows_is_a_fault_of_the_engine(
    scene: Any, plan: Any
) -> None:
    report = scene(patients=100, leak=3.0, epsilon=0.5).report(plan())
    blocked = {f.rule for f in report.findings if f.verdict is Verdict.BLOCK}
    assert "below the claimed epsilon" in blocked
    assert max(bound.general for bound in report.bounds) > 0.5


def test_intervals_are_corrected_for_the_number_of_comparisons(scene: Any, plan: Any) -> None:
    for membership in scene().report(plan()).memberships:
        assert membership.corrected.low < membership.auc.low
        assert membership.corrected.value == membership.auc.value


def test_report_survives_json_and_is_built_again_from_the_replies(scene: Any, plan: Any) -> None:
    study, people = plan(), scene(absent={"valley": 6.5})
    report = people.report(study)
    read = AuditReport.from_text(report.text)
    assert read == report
    again = build_report(
        study,
        read.answers(people.site_keys),
        weights_digest=read.weights_digest,
        absent=read.absent,
        versions={},
    )
    assert again.facts == report.facts
    assert json.loads(report.text)["absent"] == {"valley": 6.5}


def test_a_site_without_a_card_cannot_be_checked(scene: Any, plan: Any) -> None:
    people = scene()
    keys = people.site_keys
    del keys["north"]
    with pytest.raises(VerificationError, match="reply of north"):
        people.report(plan()).answers(keys)


OTHER = "0" * 64


def one(name: str = RECONSTRUCTION, **changes: Any) -> dict[str, Any]:
    counts = {"edges": (0.0, 1.0), "members": (1.0,), "non_members": (1.0,), **changes}
    return {"scores": {name: ScoreCounts(**counts)}}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"request_digest": OTHER}, "another request"),
        ({"weights_digest": OTHER}, "another weights"),
        ({"study": "other"}, "another study"),
        ({"counts": "noised"}, "another kind of counts"),
        (one(edges=(1.0, 0.0)), "does not fit"),
        (one(members=(1.0, 2.0)), "does not fit"),
        (one(members=(-1.0,)), "does not fit"),
        (one(members=(0.5,)), "does not fit"),
        (one("unheard"), "'unheard' does not fit"),
    ],
)
def test_a_reply_about_something_else_is_refused(
    scene: Any, plan: Any, changes: dict[str, Any], fault: str
) -> None:
    study, people = plan(), scene()
    answer = people.answer("north", study, **changes)
    good = people.answer("valley", study)
    digest = people.report(study).weights_digest
    with pytest.raises(VerificationError, match=fault):
        build_report(study, [good, answer], weights_digest=digest, absent={}, versions={})


def test_a_reply_of_another_site_or_plan_is_refused(scene: Any, plan: Any) -> None:
    study, people = plan(), scene()
    digest = people.report(study).weights_digest
    answer = people.answer("north", study)
    for other, fault in (
        (type(answer)("valley", answer.key, answer.request, answer.reply), "another site"),
        (
            type(answer)("north", people.keys["valley"].public, answer.request, answer.reply),
            "not signed",
        ),
        (type(answer)("north", answer.key, b"VXF1", answer.reply), "cannot be trusted"),
        (type(answer)("north", answer.key, answer.request, b""), "cannot be trusted"),
    ):
        with pytest.raises(VerificationError, match=fault):
            build_report(study, [other], weights_digest=digest, absent={}, versions={})
    with pytest.raises(VerificationError, match="another plan"):
        build_report(plan(officers=2), [answer], weights_digest=digest, absent={}, versions={})


def test_page_is_one_file_that_fetches_nothing(scene: Any, plan: Any) -> None:
    page = write_page(scene().report(plan()), picture=PNG)
    tags = Tags(page)
    assert not tags.open
    assert all(link.startswith("data:image/png;base64,") for link in tags.links)
    assert len(tags.links) == 1
    assert not tags.names & {"script", "link", "iframe", "object", "form"}
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_page_shows_what_an_officer_decides_from(scene: Any, plan: Any) -> None:
    report = scene(absent={"valley": 6.5}, pseudo=("north",)).report(plan())
    page = html.unescape(write_page(report))
    for words in (
        "WARN",
        "Accounted upper bound (proof)",
        "Attack result (lower bound)",
        "Smallest leak it could have seen",
        "ε ≤ 7.5",
        "trained and did not answer the audit",
        "no patient-level claim holds",
        "6.5 of 8",
        "no heads",
        *(line for line in report.not_tested),
    ):
        assert words in page, words


def test_samples_of_a_copying_model_are_not_shown(scene: Any, plan: Any, copies: Any) -> None:
    """Its samples are patients."""
    page = write_page(scene(copies=copies(10, 0)).report(plan()), picture=PNG)
    assert "data:image/png" not in page
    assert "Not shown" in page
    assert "Must not leave" in page


@pytest.mark.parametrize("facts", [{"copies": {}}, {"epsilon": None}, {"patients": 0}])
def test_page_and_card_stand_without_figures(scene: Any, plan: Any, facts: dict[str, Any]) -> None:
    study = plan(enabled="false") if "epsilon" in facts else plan()
    report = scene(**facts).report(study)
    assert not Tags(write_page(report)).open
    assert model_card(study, report)


def test_noised_counts_are_not_read_as_people(scene: Any, plan: Any) -> None:
    report = scene(patients=60).report(plan(counts="noised"))
    assert report.memberships[0].auc.half_width == 0.5
    assert "noised" in " ".join(report.covered)
    assert not Tags(write_page(report)).open


def test_exact_counts_are_said_to_be_outside_epsilon(
    scene: Callable[..., Any], plan: Callable[..., Any]
) -> None:
    report = scene().report(plan())
    assert "exact" in report.not_covered[0]
    assert len(report.covered) == 1


def test_names_from_outside_cannot_write_into_the_page(scene: Any, plan: Any) -> None:
    report = scene().report(plan())
    page = write_page(report.model_copy(update={"notes": ("<script>alert(1)</script>",)}))
    assert "<script>" not in page


def test_model_card_warns_and_gives_coarse_numbers(scene: Any, plan: Any) -> None:
    study = plan()
    card = model_card(study, scene(pseudo=("north",)).report(study))
    for words in (
        "Anatomy that this model draws is invented",
        "Intended use",
        "epsilon 7.5",
        "| valley | 20 | not-head | patient |",
        "pseudo-patient",
        "Not tested",
    ):
        assert words in card, words
    bare = model_card(study, scene().report(plan(enabled="false")))
    assert "Trained without privacy" in bare


def test_page_lists_what_the_search_for_copies_is_tested_to_catch(scene: Any, plan: Any) -> None:
    """Beside the copies, and only there: an audit without a search claims no tested search."""
    page = write_page(scene().report(plan()))
    for replay in REPLAYS:
        strengths = ", ".join(map(str, replay.strengths))
        assert f"<li>{replay.change}: {strengths} ({replay.unit})</li>" in page
    assert "tested to block" not in write_page(scene(copies={}).report(plan()))
