"""Rewards from people: ratings and choices read from files, and heads on a CLIP trained on them."""
