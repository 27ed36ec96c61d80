"""Generated programs, run where they can harm nothing: `host` starts and judges them, the other files run inside.

host -> jail (namespaces, limits) -> judge (pid 1 there, holds the tests) and worker (the program)

Everything but `host` is loaded by a bare interpreter (`-I -S`) and needs the standard library alone.
"""
