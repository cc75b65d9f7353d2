"""A part of the GPU check that does as its items say. Imports nothing: its processes start at once."""

import os
import time


def start(options):
    if options.target == "cannot be opened":
        raise OSError("no such device")
    return {"faulted": False}


def run(state, item):
    if item["do"] == "hang":
        time.sleep(600)
    if item["do"] == "end":
        os._exit(7)
    if item["do"] == "raise":
        raise ValueError("as asked")
    state["faulted"] = item["do"] == "fault"
    return {"status": "ok", "pid": os.getpid()}


def sound(state):
    if state["faulted"]:
        raise RuntimeError("an illegal memory access was encountered")
