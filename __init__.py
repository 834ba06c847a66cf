"""voxfed: federated training of 3D generative models with patient-level privacy."""

__version__ = "0.1.0"
