"""PID 1 of a sandbox: starts the kernel and relays its channels over the link."""
