"""The training step planned as a whole, for a GPU: `docs/gpu_step.md` is the introduction.

- `launches`: buffers and launches, the plan as data; `arena`: where buffers lie
- `compile`: from the tables of units to a plan
- `forward`, `backward`, `update`: a function for each kind of launch; `emit`: what these three files share
- `fold`: launches that only finish partial results, folded into the launches before them
- `choices`: which kernel in which shape; `tuning`: choices measured on the card, and kept
- `layout`, `storage`: how parameters lie on the GPU, and in which format tensors are stored
- `program`: a plan on a device, run launch by launch; `graph`: the same, replayed as a CUDA graph
- `schedule`: the values that change from iteration to iteration; `step`: the training step of the backend
- `price`: the costs of a plan by the roofline, and those of the composed step
"""
