"""An example of a Torpor configuration.

Copy it to the `config` folder that `torpor doctor` names (by default ~/.config/torpor/). Every name
is optional; `torpor templates` shows what comes of it. Changes count from the next kernel on.
"""

c = get_config()  # noqa: F821

# Templates by name. A field that is not named has the value of the built-in default.
c.Torpor.templates = {
    "default": {
        "memory_bytes": "4G",
        "workspace": "rw",
    },
    "big": {
        "description": "Much memory, and the notebook's folder read-only",
        "memory_bytes": "16G",
        "home_bytes": "8G",
        "workspace": "ro",
        "read_only": ["/srv/datasets"],
    },
    "instant": {
        "description": "Always two kernels ready, with pandas imported where it is installed",
        "pool_least": 2,
        "pool_most": 8,
        "warm_up": ["numpy?", "pandas?"],
    },
    "scratch": {
        "description": "For code nobody has read: sees no folder of yours at all",
        "memory_bytes": "1G",
        "cpu_milli": 1000,
        "workspace": "none",
    },
}

# What a kernel gets that names no template.
c.Torpor.default_template = "default"

# A runsc of your own instead of the installed one. TORPOR_RUNSC in the environment wins over it.
# c.Torpor.runsc_path = "/usr/local/bin/runsc"

# Where `torpor install-runsc` finds official releases: a mirror inside your network, for example.
# c.InstallRunscCommand.release_url = "https://mirror.example/gvisor/releases/release"

# Where snapshots of sleeping kernels go besides this disk; needs `pip install torpor[stores]`. With a
# key they are encrypted, and with "drop" no plain copy of a sleeping kernel stays here.
# c.Torpor.store = {"url": "file:///srv/torpor", "key_file": "/home/ada/torpor.key", "local": "drop"}

# Disk space for goldens, and memory that waiting clones never take.
c.TorporDaemon.goldens_max_bytes = 4 << 30
c.TorporDaemon.reserve_bytes = 1 << 30

# torpord ends by itself after so many seconds without a kernel.
c.TorporDaemon.idle_exit_s = 300
