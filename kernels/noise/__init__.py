"""Noise stream v2; the contract is in README.md beside this file."""
