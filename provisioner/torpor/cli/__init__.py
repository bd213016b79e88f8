"""The command line: ``torpor`` (also ``jupyter torpor``)."""
