"""The study file that `voxfed study new` starts from."""

TEMPLATE = """\
# A study of voxfed. `voxfed study validate {name}` explains every key.
name = "{name}"
family = "vae"                # see `voxfed models`
rounds = 20
local_steps = 3               # optimiser steps of a site in a round
expected_patients = 12        # patients drawn per step, on average
trained = "all"               # or "normalisation-and-biases", "adapters"
audit_fraction = 0.5          # share of patients that flip a coin for the audit

[settings]                    # the family's own
channels = [8, 16, 32]
latent_channels = 4
groups = 8

[volumes]
shape = [32, 32, 32]          # voxels, (D, H, W)
spacing = [5.0, 5.0, 5.0]     # mm
modality = ""                 # image suffix, e.g. "T1w" or "ct"; "" takes every image
intensity = "percentiles"     # or "window" with window = [-1000.0, 1000.0] in HU

[optimiser]
name = "adam"
learning_rate = 3e-4

[privacy]
epsilon = 8.0
delta = 1e-5                  # below 1 / patients
clip_norm = 0.1
volumes_per_patient = 2
noise_multiplicity = 1
audit_counts = "noised"       # "exact" counts are not covered by epsilon

[aggregation]
quorum = 2
deadline = 3600.0             # seconds a round waits for its sites
approval_deadline = 86400.0   # seconds that sites have to decide

[release]
officers = 2                  # who must approve before weights leave
"""
