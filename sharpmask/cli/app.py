"""The command ``sharpmask app``: the page."""

from __future__ import annotations

import socket
import sys
import threading
import webbrowser
from contextlib import suppress

from ..app.address import url_of
from ..app.server import serve
from ..checkpoint import load_model
from ..devices import usable_device
from .options import App
from .output import say
from .shared import make_generator


def app(options: App, listening: socket.socket) -> int:
    """Serve the page until Ctrl-C, which is how it ends."""
    with listening:
        model = load_model(options.checkpoint, usable_device(options.search.device))
        generator = make_generator(
            model, options.search, options.compute, top_n=options.top_n, refine=True, exif=options.exif
        )
        say(f"{url_of(listening)}: open this in a browser of this computer; Ctrl-C ends it")
        sys.stdout.flush()  # the line that matters may go to a file
        if options.browser:
            # A browser in the terminal would not return.
            threading.Thread(target=webbrowser.open, args=[url_of(listening)], daemon=True).start()
        with suppress(KeyboardInterrupt):
            serve(generator, listening)
    return 0
