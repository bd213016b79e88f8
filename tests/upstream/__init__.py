"""Suites of other projects, unmodified, with every kernel routed through Torpor."""
