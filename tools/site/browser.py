"""The installed Chromium, which tests of the page and pictures of pages use."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """Its path: what the environment variable CHROMIUM names, or the first of `NAMES` on PATH.

    Raises FileNotFoundError without one.
    """
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise FileNotFoundError(f"Chromium must be installed, as one of {', '.join(NAMES)}, or be named by CHROMIUM")
    return path
