"""Check every pair, every unit and every network with finite differences, by `tinyres.gradcheck`."""
