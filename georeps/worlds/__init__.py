"""What comes with the install, seeded and the same on every machine: the real Earth, procedural cities, aerial patterns.

A world draws places and pictures; it knows no network and no paper, and what is asked about it is made in `tasks`. Imports from `core`.
"""
