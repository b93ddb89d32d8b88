"""Policies: networks that draw pictures from prompts, and the weights of theirs that are trained."""
