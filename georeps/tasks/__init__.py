"""One record for a method to take, from an embedded world or from your own data: pairs, places, classes, drives, composed queries.

A task says what is asked and what would be right; how to answer stands in `papers`. What writes an embedded world in an official tree is here too.
Imports from all folders but `lab`.
"""
