"""The stable Jupyter endpoints of every kernel of a user, in one process of their own."""
