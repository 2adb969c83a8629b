"""Tools and code of the project that migrate, each in a process of its own."""
