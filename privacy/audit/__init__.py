"""Attacks on a trained model, their statistics and the report."""
