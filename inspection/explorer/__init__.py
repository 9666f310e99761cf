"""Browses a finished build or scan in a browser: rows by any column, episodes step by step, tokens, selections.

What knows nothing of Panel: ``columns`` (what a row is shown, filtered and sorted by), ``query`` and ``keys`` (rows are
found and sorted), ``tasks``, ``playing`` (an episode's steps), ``picked`` (a selection and its list), ``words``.

What a session's page is made of: ``task_list``, ``browse`` (filters and rows), ``opened`` (the views of an episode or
document) and ``plot``, all drawn by ``widgets``; ``app`` puts them into ``page.html``, and ``server`` serves it.
"""
