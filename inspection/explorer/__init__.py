"""Browses a finished build or scan in a browser: rows by any column, episodes step by step, tokens, selections.

``columns`` says what a row can be filtered, sorted and shown by, ``query`` finds rows, ``tasks`` lists tasks,
``playing`` shows an episode's steps, ``picked`` holds and exports a selection: none of these knows Panel. ``app`` makes
the page of a session out of ``widgets``, ``server`` serves it.
"""
