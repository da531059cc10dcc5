"""Is the `cupy` backend right, and how fast is it, on the GPU at hand? ``make gpu`` runs these checks.

- `__main__`: the command, ``python -m tinyres_gpu.check``, and how it runs each phase in a process of its own
- `phases`: the list of phases; `setting`: what the phases share
- `correctness`, `numerics`, `runs`: the phases that find out whether everything is right
- `speed`: the phases that measure; `profiling`: the time of each kernel
- `oracle`: our kernels compared with the textbook on NumPy
- `results`: the results of the phases, read from JSON and shown as a table
"""
