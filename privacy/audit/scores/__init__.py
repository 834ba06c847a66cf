"""Membership scores: how well a model knows a volume, as an attacker with its weights would ask."""
