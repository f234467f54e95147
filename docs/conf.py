"""How Sphinx builds the site: `sphinx-build -n -W docs OUT`, after `pip install '.[docs]'`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generated_pages
from sphinx.application import Sphinx

import fcmae

project = "FCMAE toolkit"
author = "The FCMAE toolkit's developers"
version = release = fcmae.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # the ablation's report starts below its own title

autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Types of other libraries, whose pages cannot be looked up without a network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|np|numpy|nn|os|collections|pathlib|typing|timm|PIL)\b.*"),
    # Names that docstrings use and that no page of the site describes.
    ("py:.*", r"fcmae\.settings\..*Config|fcmae\.weights\.encoder_info\.EncoderInfo"),
    ("py:.*", r"Backend|GrnScope|UndecodableImageError|ConvNeXt|EncoderInfo|SegmenterInfo"),
    ("py:.*", r"fcmae\.data\.image_list\.ImageList|fcmae\.evaluation\.features\.Features"),
    ("py:.*", r"fcmae\.(data|evaluation|reports|verification)\.\w+\.[A-Z]\w+"),
    # Of functions whose results are imported when they are called.
    (
        "py:.*",
        r"Any|Mapping|Sequence|Paths?|Report|Inspection|Curation|Certificate|Scores|Line|PretrainConfig|UnsupportedModelError",
    ),
]

smartquotes = False  # options begin with two hyphens
html_theme = "furo"
html_title = f"FCMAE toolkit {version}"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # summaries are fetched, which no browser does from disk
html_domain_indices = False  # one module


def setup(app: Sphinx) -> None:
    """Write the pages that are made from the code before Sphinx reads the folder."""
    app.connect("builder-inited", lambda app: generated_pages.write(Path(app.srcdir)))
