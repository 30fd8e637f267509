"""Recipes: a whole training run as one YAML file, read with every mistake named by its line."""
