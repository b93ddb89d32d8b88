"""How this software is cited, in BibTeX; an algorithm has its paper's entry with it."""


def software(version: str) -> str:
    """The entry of Tastemaker itself, as CITATION.cff has it."""
    return f"""@software{{tastemaker,
  title   = {{Tastemaker: reward fine-tuning of text-to-image diffusion models}},
  author  = {{{{The Tastemaker authors}}}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""
