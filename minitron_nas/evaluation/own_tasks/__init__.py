"""lm-eval task files of ours. lm-eval reads the folder, and loads the modules in it that the files name."""
