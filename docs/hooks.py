"""Pages of the site that are written elsewhere: README, contributing, changelog, options."""

import re
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TAKEN = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files, config):
    """Add the pages whose text is a file of the repository."""
    from mkdocs.structure.files import File

    for page, source in TAKEN.items():
        files.append(
            File.generated(config, page, content=at_home((ROOT / source).read_text("utf-8")))
        )
    return files


def on_page_markdown(markdown, page, **_):
    """Write the options into their page, and links to the root's documents as links to pages."""
    for taken, source in TAKEN.items():
        markdown = markdown.replace(f"](../{source}", f"]({taken}")
    if page.file.src_uri == "options.md":
        markdown = markdown.replace("<!-- options -->", options())
    return markdown


def at_home(text: str) -> str:
    """Return a text of the repository's root with its links as they are within docs.

    Args:
        text: Markdown or HTML whose links start at the root.
    """
    text = re.sub(r'(\]\(|src="|srcset=")docs/', r"\1", text)
    text = re.sub(
        r"\]\((CONTRIBUTING|CHANGELOG)\.md", lambda found: f"]({found[1].lower()}.md", text
    )
    # What is no page of the site keeps its words and loses its link.
    shown = r"!\[[^\]]*\]\([^)]*\)|[^\[\]]+"
    return re.sub(rf"\[({shown})\]\((?:LICENSE|CITATION\.cff)\)", r"\1", text)


def options() -> str:
    """Return a table per group of options."""
    from recipes.config import TrainingOptions, TTDSArguments

    parts = []
    groups = [part.default_factory for part in fields(TTDSArguments)]
    for group in (*groups, TrainingOptions):
        shown = group()
        lines = [
            f"## {group._argument_group_name.capitalize()}",
            "",
            "| option | default | |",
            "|---|---|---|",
        ]
        for option in fields(group):
            default = getattr(shown, option.name)
            text = option.metadata.get("help", "").replace("|", "\\|")
            lines.append(f"| `--{option.name}` | `{default}` | {text} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
