# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration. Building and reading need no network: no intersphinx, no MathJax, no web fonts."""

import os
import subprocess
import sys
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math.latex2mathml import tex2mathml

from covid_monai import __version__

project = "covid_monai"
author = "covid_monai contributors"
copyright = "covid_monai contributors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "reproduction/table.md"]  # the table is included in its index
default_role = "py:obj"

html_theme = "furo"
html_title = f"covid_monai {__version__}"
html_math_renderer = "mathml"
html_copy_source = False

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the bundle's README has the heading levels of MONAI's template

napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}


class CommandHelp(Directive):
    """``command-help``: what ``covid-monai <words> --help`` prints, so that it never differs from the command."""

    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", "covid_monai.cli", *self.arguments, "--help"]
        environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1"}
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        return [nodes.literal_block(text, text, language="text")]


def skip_repeats(app: Any, kind: str, name: str, member: Any, *_: Any) -> bool | None:
    """Leave out MONAI's extra names of a dictionary transform, and the fields of named tuples, told in their class."""
    alias = isinstance(member, type) and member.__name__ != name
    field = str(getattr(member, "__doc__", "")).startswith("Alias for field number")
    return True if alias or field else None


def visit_math(translator: Any, node: nodes.math) -> None:
    """Equations as MathML, which browsers draw by themselves."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """A displayed equation."""
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register what stands above."""
    app.add_directive("command-help", CommandHelp)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("autodoc-skip-member", skip_repeats)
