"""Noise stream v1; the contract is in README.md beside this file."""
