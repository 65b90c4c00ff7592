"""Sealed segments: compressed, kept for so long, and gone."""
