"""What turns runs into pages: records and claims, tables and figures, page elements, speed, and trainings that chapters share.

Nothing that a method or a task needs is here. Imports from all folders.
"""
