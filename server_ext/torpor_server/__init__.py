"""Server side of the JupyterLab integration (an ordinary jupyter_server extension)."""
