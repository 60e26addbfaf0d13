"""Orthogonal matching pursuit: sparse codes with few atoms, chosen one by one."""
