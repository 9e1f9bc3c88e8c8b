"""The form of every error that a person can meet."""

from __future__ import annotations

import re

SENTENCE = re.compile(r".+, got .+ \(.+\)\. .+[.?`]", re.DOTALL)
"""What every problem looks like: <what>, got <value> (<where>). <how to fix>."""
