"""What Sphinx is told; `make docs` builds the site into build/docs."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as _version
from pathlib import Path

# Each worker of the gallery computes on one thread, so that two do not compete for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "latent-kernels"
author = "The latent-kernels developers"
project_copyright = author
release = version = _version("latent-kernels")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "sphinx_design",
    # our own, in _extensions/
    "mathml",
    "repository_links",
    "type_aliases",
]
exclude_patterns = ["_*", "**/GALLERY_HEADER.rst"]
templates_path = ["_templates"]
default_role = "py:obj"
# A page of the gallery is Python, reST and a notebook by one name; these are what Sphinx parses.
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions
nitpicky = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
# What stands in an annotation by its short name is shown by it, and not as the union that it is.
_ALIASES = [
    "Algorithm",
    "Array",
    "ArrayLike",
    "Encoder",
    "Family",
    "Floats",
    "LogJoint",
    "Mask",
    "Seed",
]
_ALIASES += ["Stream", "Thresholds", "Validation", "Variant", "Watcher"]
autodoc_type_aliases = {name: name for name in _ALIASES}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    # torchrun starts this one; it is shown and not executed.
    "filename_pattern": r"/(?!distributed_)\w+\.py$",
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("latent_kernels",),
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("matplotlib",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "plot_gallery": True,
    "show_memory": False,
    "show_signature": False,
    "parallel": 2,
    "image_scrapers": ("matplotlib",),
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "latent-kernels"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "benchmarks": [], "gallery/index": []}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
