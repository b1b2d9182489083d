"""Fuzzing: for each decoder a check that takes any bytes, and seeds to begin with. ``scripts/fuzz`` runs them under atheris."""
