"""Samples of discrete families, from the uniforms of noise stream v2."""
