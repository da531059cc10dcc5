"""What the kernels of `pairs` and of `planned` share.

- the .cuh files: device functions that more than one kernel is made of
- `sources`: which kernels there are, which files they are made of, and the names of their arguments
- `loader`: from a source file to a launch
- `precision`: in which arithmetic convolutions multiply
"""
