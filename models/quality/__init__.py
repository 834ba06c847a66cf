"""Fidelity, diversity and utility of synthetic volumes, and the feature extractors they need."""
