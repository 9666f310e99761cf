"""Shows a finished build or scan in a browser: rows by any column, episodes step by step, tokens, selections.

Without Panel: ``columns`` (what a row is shown, filtered and sorted by), ``query`` (finds and sorts rows), ``playing``
(the steps of an episode), ``selection`` (selected episodes and their list).

The page of a session: ``task_list``, ``browse`` (filters and rows), ``opened`` (the views of an episode or document)
and ``plot``, all drawn by ``widgets``. ``server`` puts them into ``page.html`` and serves it.
"""
