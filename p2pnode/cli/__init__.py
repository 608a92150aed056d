"""The command line: click commands that read options, call what does the work, and print errors. No logic."""
