"""Training runs: configuration, folders, checkpoints, evaluation, pictures, costs, and the commands."""
