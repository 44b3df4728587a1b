"""More than one measurement: folders, lists and globs, one process or many.

:func:`toolbox.tasks.scale.engine.restore_all` restores :class:`Item` by :class:`Item`, keeps a
manifest of them, and goes on where an earlier run ended.
"""
