"""``python -m tinyres``: look at a network, check every gradient, fetch data."""

if __name__ == "__main__":
    from tinyres.system.command_line import exit_with_one_sentence
    from tinyres.training.commands import main

    exit_with_one_sentence(main)
