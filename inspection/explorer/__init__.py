"""Shows a finished build or scan in a browser: rows by any column, episodes step by step, tokens, selections.

``query`` finds, sorts and selects rows, without Panel. The page of a session is made of ``browse`` (tasks, filters and
rows) and ``episode`` (the views of an episode or document), both drawn by ``widgets``. ``server`` puts them into
``page.html`` and serves it.
"""
