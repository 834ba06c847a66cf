"""What all roles agree on; imports nothing of ours."""
