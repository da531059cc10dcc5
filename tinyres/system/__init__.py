"""The interface to the operating system: files, processes, signals, the command line, progress bars."""
