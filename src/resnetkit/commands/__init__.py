"""The verbs of the command line: flags in, a call, a table or JSON out. What they do lives elsewhere."""
