"""Streams what an engine makes of the prompts on stdin, one a line: python examples/generate.py ENGINE < PROMPTS"""

import sys

from dsv2_compile.runtime import Engine

with Engine.load(sys.argv[1]) as engine, engine.scheduler() as scheduler:
    prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    for submission in [scheduler.submit(prompt, max_new_tokens=64) for prompt in prompts]:  # all run together
        print(prompts[submission.id], end="")
        for token in submission:
            print(token.text, end="", flush=True)
        print()
