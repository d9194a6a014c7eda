"""The command line: parse -> call -> report, nothing else. One file a command."""
