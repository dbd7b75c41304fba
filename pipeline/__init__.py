"""The shared library: everything that the stages compute is computed here."""
