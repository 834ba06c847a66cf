"""One family of each group, trained with privacy in the real federation, audited and released."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conditions import CONDITIONED, tell
from families import TINY
from federation import Federation
from voxfed.client.site import Site
from voxfed.models.registry import FAMILIES
from voxfed.server.coordinator import Coordinator
from voxfed.server.store import Store

pytestmark = pytest.mark.slow

SITES = ("north", "harbour")
GROUPS = ("wgan-gp", "wavelet-diffusion", "vq-transformer")


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A coordinator and two hospitals that allow every family."""
    with Federation(*SITES) as made:
        limits = {"families": list(FAMILIES), "lifetime_epsilon": 99.0}
        for site in SITES:
            made.settle(site, limits=limits)
            tell(made.folder / f"cohort-{site}")
        made.start_server()
        for site in SITES:
            made.start_site(site)
        yield made


@pytest.mark.parametrize("name", [*GROUPS, *CONDITIONED])
def test_two_private_rounds_an_audit_and_a_bundle(federation: Federation, name: str) -> None:
    """Each stage's rounds are charged at each site, and the gate builds a bundle."""
    changes = {"family": name, "settings": TINY[name], "privacy": {"epsilon": 6.0}}
    changes["volumes"] = {"modality": "phantom"}
    if name in CONDITIONED:
        changes["condition"] = CONDITIONED[name]
    federation.new_study(name, **changes)
    done = federation.run_study(name, approve=SITES).json
    server = ("--folder", federation.coordinator)
    owner = Coordinator(federation.coordinator)
    schedule = Store(owner.studies / name).schedule
    assert (done["state"], done["rounds"]) == ("finished", schedule.rounds)
    expected = [(schedule.stage_of(n + 1).name, n + 1) for n in range(schedule.rounds)]
    for site in SITES:
        assert federation.charges(site, name) == expected
        assert 0 < Site(federation.sites[site]).ledger.spent(name) <= 6.0
    audit = federation.audit(name, SITES)
    assert audit["refused"] == {}
    built = federation.cli("release", "build", name, *server, "--json").json
    drawn = ["sample", built["bundle"], "-n", 1, "-o", federation.folder / f"{name}-volumes"]
    if name == "pix2pix" and audit["verdict"] != "BLOCK":
        federation.cli(*drawn, code=2)  # it starts from a mask
    if name in CONDITIONED:
        mask = next((federation.folder / "cohort-north").glob("*/*_tissue.nii.gz"))
        drawn += ["--condition", "M" if name == "conditional-vae" else mask]
    done = federation.cli(*drawn, code=3 if audit["verdict"] == "BLOCK" else 0)
    if name == "pix2pix" and done.code == 0:
        assert list((federation.folder / f"{name}-volumes").glob("*_mask.nii.gz"))
