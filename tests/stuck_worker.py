"""A worker of `processes` that never gets ready."""

import time


def start(setup):
    time.sleep(86400)
