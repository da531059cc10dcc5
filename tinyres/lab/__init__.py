"""The propagation lab: the measurements of the demos, made with `tinyres.propagation`, and helpers.

measure: the split gradient of every unit, in numbers. signals: Eqs. (4) and (7). weight_terms,
finite_differences: Eq. (5)'s second term by itself, and without any backward pass. truncation: the values that
f = ReLU cuts off. surgery: networks without batch norm, scaled weights. norms: norms and angles. setup: the
demos' flags, images, tables and figures.
"""
