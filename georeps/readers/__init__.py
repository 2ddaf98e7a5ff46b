"""Official data sets on disk, one family a file: their trees and lists become records of paths, labels and positions.

A reader parses and checks, and names file and line where something is not as it should be, or in one error all files that are missing; it trains
nothing and judges nothing. Imports from `core` and `worlds`.
"""
