"""Self-contained HTML pages: a template that holds a title and data; no name of others can become markup."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

# What stands before the data in a template.
BEGIN = '<script type="application/json" id="data">'


def rendered(template: str, title: str, content: Mapping[str, Any]) -> str:
    """A template with its ``@TITLE@`` and, as JSON in a script element, its ``@DATA@``.

    Raises:
        ValueError: a number that is not finite.
    """
    data = json.dumps(content, separators=(",", ":"), allow_nan=False)
    # Within a script element nothing but these can end it, or start a comment.
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    before, _, rest = template.partition("@TITLE@")
    between, _, after = rest.partition("@DATA@")
    return f"{before}{html.escape(title)}{between}{data}{after}"
