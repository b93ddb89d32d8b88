"""The page that people vote on: one document with its style and script inside, which alone its policy lets run."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tastemaker.reports.inline import as_json, digest

HERE = Path(__file__).parent


def page(token: str) -> tuple[bytes, str]:
    """The document, and its content security policy. `token` goes with every vote."""
    style, script = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    made = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    text = made.get_template("page.html.jinja").render(style=style, script=script, data=as_json({"token": token}))
    policy = (
        f"default-src 'none'; img-src 'self' data:; style-src {digest(style)}; script-src {digest(script)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
    return text.encode(), policy
