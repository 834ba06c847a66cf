"""Families of 3D generative models: pure torch and MONAI."""
