"""The whole catalogue against finite differences: every pair, every unit and every network of the paper."""
