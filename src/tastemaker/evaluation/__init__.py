"""Measuring: base against tuned on the same prompts and noise, with honest intervals."""
