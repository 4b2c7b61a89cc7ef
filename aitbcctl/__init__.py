"""The command line of aitbcd. Talks HTTP to the daemon and takes only plain data from it."""
