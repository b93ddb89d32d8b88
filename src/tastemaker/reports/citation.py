"""Citations in BibTeX: of the papers that an algorithm's file names in its first line, and of this software."""

# The spelling of a paper in a docstring -> its entry.
PAPERS = {
    "arXiv:2305.13301": """@inproceedings{black2024training,
  title     = {Training Diffusion Models with Reinforcement Learning},
  author    = {Black, Kevin and Janner, Michael and Du, Yilun and Kostrikov, Ilya and Levine, Sergey},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2305.13301}
}""",
    "Williams 1992": """@article{williams1992simple,
  title   = {Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning},
  author  = {Williams, Ronald J.},
  journal = {Machine Learning},
  volume  = {8},
  pages   = {229--256},
  year    = {1992},
  doi     = {10.1007/BF00992696}
}""",
}


def papers(text: str) -> list[str]:
    """The entries of all papers that a text names, in the order in which it does."""
    named = sorted((text.index(spelling), entry) for spelling, entry in PAPERS.items() if spelling in text)
    return [entry for _, entry in named]


def software(version: str) -> str:
    """The entry of Tastemaker itself, as CITATION.cff has it."""
    return f"""@software{{tastemaker,
  title   = {{Tastemaker: reward fine-tuning of text-to-image diffusion models}},
  author  = {{{{The Tastemaker authors}}}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""
