"""The HTTP interface: sockets, who is asking, one module for each resource.

It decides nothing about jobs: it asks ``engine``, and reads ``store`` and ``results``.
"""
