"""Every algorithm's paper has an entry, and the entry of this software is CITATION.cff's."""

from __future__ import annotations

import re

import pytest
import yaml

import tastemaker
from house.syntax import ROOT
from tastemaker import config, manual
from tastemaker.build import attribute
from tastemaker.reports.citation import software


@pytest.mark.parametrize("name", sorted(config.algorithms()))
def test_an_algorithm_cites_what_its_first_line_names(name: str) -> None:
    entry = config.algorithms()[name]
    made, said = attribute(entry), manual.headline(entry.partition(":")[0])
    assert "citation" in vars(made), "an algorithm cites its own paper, not its parent's"
    assert "\n\n".join(manual.citations(name)) == made.citation
    named = re.findall(r"arXiv:\d{4}\.\d{4,5}", said)
    assert named and re.findall(r"arXiv:\d{4}\.\d{4,5}", made.citation) == named


@pytest.mark.parametrize("cited", [*(attribute(e).citation for e in config.algorithms().values()), software("1.0")])
def test_an_entry_is_whole(cited: str) -> None:
    for entry in cited.split("\n\n"):
        assert re.match(r"@\w+\{\w+,\n", entry) and entry.count("{") == entry.count("}")
        assert re.search(r"^  title +=", entry, re.MULTILINE) and re.search(r"^  author +=", entry, re.MULTILINE)


def test_the_software_is_cited_as_citation_cff_says() -> None:
    cff, entry = yaml.safe_load((ROOT / "CITATION.cff").read_text()), software(tastemaker.__version__)
    for text in (cff["title"], cff["authors"][0]["name"], str(cff["version"]), cff["license"]):
        assert f"{{{text}}}" in entry
