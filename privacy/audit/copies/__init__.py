"""The search for copies of patients among synthetic volumes."""
