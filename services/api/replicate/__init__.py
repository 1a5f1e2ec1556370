"""Replicate's interface over the native jobs."""
