"""Training runs, with their configuration, folders, checkpoints, evaluation, pictures, costs and commands."""
