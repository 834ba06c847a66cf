"""What bounds and measures leakage."""
