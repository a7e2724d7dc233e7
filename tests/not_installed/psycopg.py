"""Found before the real one by programs of tests that have no queue on a server: most are without
it, and its import takes as long as half of a program's start."""

raise ImportError("psycopg is not installed")
