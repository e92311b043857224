"""Environments: captured, locked, made.

An environment is a Python version and a set of exact wheels. Reading order: `interpreters` (what Pythons are here),
`captured` (what a model and its code say they need), `lock` (values), `index` (what an index answers), `asof` (the date
that requirements are resolved as of), `pythons` (which Python), `resolve` (requirements → lock), `install` (lock → a
folder with an interpreter), `wheels` (what travels with a package), `libraries` (what no wheel ships). Only `uv` and
`wheels` call installers.
"""
