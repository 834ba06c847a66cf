"""The demonstration: three hospitals, a coordinator and an officer on one machine, end to end."""
