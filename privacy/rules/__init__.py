"""The rules of the release gate, each of which checks one fact."""
