"""Makes a reference page for each module that `extra.reference` in mkdocs.yml names."""

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the pages to the section of the navigation that has the reference's own index."""
    section = reference_section(config.nav or [])
    section.extend({module: page_of(module)} for module in config.extra["reference"])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages themselves: one instruction each, which mkdocstrings carries out."""
    for module in config.extra["reference"]:
        files.append(File.generated(config, page_of(module), content=f"::: {module}\n"))
    return files


def page_of(module: str) -> str:
    """The path of a module's page, relative to docs/."""
    return f"reference/{module}.md"


def reference_section(nav: list[Any]) -> list[Any]:
    """The list below `Reference:` in the navigation."""
    return next(item["Reference"] for item in nav if isinstance(item, dict) and "Reference" in item)
