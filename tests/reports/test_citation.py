"""Every algorithm's paper has an entry, and the entry of this software is CITATION.cff's."""

from __future__ import annotations

import re

import pytest
import yaml

import tastemaker
from house.syntax import ROOT
from tastemaker import config, manual
from tastemaker.reports import citation


@pytest.mark.parametrize("name", sorted(config.algorithms()))
def test_an_algorithms_first_line_names_papers_that_have_entries(name: str) -> None:
    said = manual.headline(config.algorithms()[name].partition(":")[0])
    named = re.findall(r"arXiv:\d{4}\.\d{4,5}", said)
    assert citation.papers(said), f"{said!r} names no paper of reports/citation.py"
    assert [one for one in named if one not in citation.PAPERS] == []


def test_papers_come_in_the_order_of_the_text() -> None:
    both = citation.papers("Black et al., arXiv:2305.13301; Williams 1992.")
    assert [entry.partition("{")[2].partition(",")[0] for entry in both] == ["black2024training", "williams1992simple"]
    assert citation.papers("by nobody") == []


@pytest.mark.parametrize("entry", [*citation.PAPERS.values(), citation.software("1.0")])
def test_an_entry_is_whole(entry: str) -> None:
    assert re.match(r"@\w+\{\w+,\n", entry) and entry.count("{") == entry.count("}")
    assert re.search(r"^  title +=", entry, re.MULTILINE) and re.search(r"^  author +=", entry, re.MULTILINE)


def test_the_software_is_cited_as_citation_cff_says() -> None:
    cff, entry = yaml.safe_load((ROOT / "CITATION.cff").read_text()), citation.software(tastemaker.__version__)
    for text in (cff["title"], cff["authors"][0]["name"], str(cff["version"]), cff["license"]):
        assert f"{{{text}}}" in entry
