"""The verbs of the command line. Each reads its flags, calls the library, and prints a table or JSON."""
