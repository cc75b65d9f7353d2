"""The check of everything that needs a GPU, on the GPU: kernels, engines, speed. One command, one JSON.

    python -m dsv2_compile.gpu_check --out DIR [--engine DIR ...]

Imported by no build and no runtime. With ``--host`` all of it runs on the host instead, at toy sizes.
"""
