"""Recipes, protocol presets and suites: YAML files only, installed with the package so that they open from anywhere."""
