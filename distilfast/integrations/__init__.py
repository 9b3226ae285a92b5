"""Drop-ins for other libraries, one module for each; the library itself has to be installed."""
