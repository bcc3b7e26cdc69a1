"""The command line `unitune`: commands, their options, and what they show and write."""
