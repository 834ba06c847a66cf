"""What runs inside the hospital."""
