"""The execution plane: a program of its own, standard library only, that may be root.

``launcher`` obeys the daemon and forks supervisors; a ``supervisor`` owns one attempt of a job
and outlives both. Only ``protocol`` is shared with the daemon.
"""
