"""The propagation lab: what the demos measure with `tinyres.propagation`, and what else they need.

measure: the split gradient of every unit, in numbers. finite_differences: Eq. (5)'s second term without any
backward pass. truncation: what f = ReLU cuts off. surgery: networks without batch norm, scaled weights. setup:
the demos' flags, images, tables and figures.
"""
