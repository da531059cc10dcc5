"""Is the `cupy` backend right, and how fast is it, on the GPU at hand? ``make gpu`` runs this.

- `__main__`: the command, ``python -m tinyres_gpu.check``, and how it runs each phase in a process of its own
- `phases`: the list of phases; `setting`: what they share
- `correctness`, `numerics`, `runs`: the phases that find out whether everything is right
- `speed`: the phases that measure; `profiling`: the time of each kernel
- `oracle`: our kernels beside the textbook on NumPy
- `results`: what was found, read from JSON and shown as a table
"""
