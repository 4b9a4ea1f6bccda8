"""The family of networks: their descriptions as data (`spec`, without torch), their blocks, and the module."""
