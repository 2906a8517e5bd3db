# SPDX-License-Identifier: Apache-2.0
"""The site that ``make docs`` builds: guides, and a reference from docstrings."""

import builtins
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

from snpcerts import __version__

project = "snpcerts"
author = "The snpcerts authors"
copyright = author
release = version = __version__
root_doc = "docs/site/index"
# Paths are those of the tree, so that links work there as well.
include_patterns = ["*.md", "docs/*.md", "docs/site/*.md", "docs/site/*.rst"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_heading_anchors = 4
html_theme = "snpcerts"
html_theme_path = ["theme"]
html_theme_options = {"fixed_sidebar": True, "page_width": "70em"}
html_static_path = ["static"]
html_copy_source = False

# Every reference in a docstring must lead somewhere.
nitpicky = True
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "undoc-members": True,
}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80


@functools.cache
def _names() -> frozenset[str]:
    """Every name in the modules of the public packages."""
    return frozenset(name for module in _modules() for name in vars(module))


def _modules() -> Iterator[ModuleType]:
    for package in ("abi", "endorsement", "verify", "kds", "certfile", "vmm", "guest"):
        parent = importlib.import_module(f"snpcerts.{package}")
        for path in sorted(Path(parent.__path__[0]).glob("[a-z]*.py")):
            yield importlib.import_module(f"{parent.__name__}.{path.stem}")


def _resolved(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element
) -> nodes.Element | None:
    """A reference by a short name, or by the module that a public name is in.

    What is documented becomes a link; what exists (a private module's, Python's own)
    stays text; for the rest the build fails.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip("~.")
    last = target.rpartition(".")[2]
    known = [name for name in env.domains.python_domain.objects if name.endswith(f".{last}")]
    if len(known) == 1:
        entry = env.domains.python_domain.objects[known[0]]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text)
    top = target.partition(".")[0]
    exists = (
        last in _names()
        or hasattr(builtins, last)
        or top in sys.stdlib_module_names
        or top == "cryptography"
        or (top == "snpcerts" and importlib.util.find_spec(target) is not None)
    )
    return text if exists else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", _resolved)
