"""What mkdocs does to every page: a mean and its spread stay on one line."""

from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """No line ends before or behind a ±."""
    return markdown.replace(" ± ", "\u00a0±\u00a0")
