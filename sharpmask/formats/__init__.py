"""Masks in the formats of other programs."""
