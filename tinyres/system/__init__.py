"""What tinyres needs of the operating system: files, processes, signals, a command line, a progress bar."""
