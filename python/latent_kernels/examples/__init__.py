"""Examples that train on real data: `vae` is the one to read; `demo` runs it, draws it and measures
it.
"""
