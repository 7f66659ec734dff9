"""The kinds of stage, a module each, named as in the results' column `stage`."""
