"""The training step planned as a whole, for a GPU: `docs/gpu_step.md` is the introduction.

- `launches`: buffers and launches, the plan as data; `arena`: where buffers lie
- `compile`: from the tables of units to a plan; `emit`: one launch after the other
- `choices`: which kernel in which shape; `tune`: measured on the card; `kept`: in the user's cache folder
- `layout`: how parameters lie on the GPU
- `program`: a plan on a device, run launch by launch or replayed as a CUDA graph
- `price`, `composed`: what a plan costs by the roofline, beside the step that composes pairs
"""
