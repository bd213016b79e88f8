"""``torpor`` itself: the table of commands, each imported only when it is used."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

from torpor.cli.command import Command


class TorporCommand(Command):
    name = "torpor"
    description = "Jupyter kernels in gVisor sandboxes."
    examples = cleandoc("""
    torpor doctor                     # can this machine do it, and what to fix
    torpor install-runsc              # get gVisor's runsc
    torpor kernelspec install         # offer "Python 3 (gVisor)" beside "Python 3"
    torpor kernels                    # what is running
    torpor pool                       # which clones wait to be claimed, and why
    """)
    subcommands: dict[str, Any] = {  # noqa: RUF012 (traitlets' habit)
        "doctor": (
            "torpor.cli.doctor.DoctorCommand",
            "Check this machine and say what to fix.",
        ),
        "install-runsc": (
            "torpor.cli.install_runsc.InstallRunscCommand",
            "Install gVisor's runsc for this user.",
        ),
        "kernelspec": (
            "torpor.cli.kernelspec.KernelspecCommand",
            "Add, list and remove sandboxed twins of installed kernels.",
        ),
        "kernels": ("torpor.cli.kernels.KernelsCommand", "List the kernels that the daemon holds."),
        "hibernate": (
            "torpor.cli.sleep.HibernateCommand",
            "Save the memory of idle kernels to disk and end their processes.",
        ),
        "freeze": ("torpor.cli.sleep.FreezeCommand", "Stop idle kernels, in memory."),
        "wake": ("torpor.cli.sleep.WakeCommand", "Bring sleeping kernels back."),
        "pin": ("torpor.cli.sleep.PinCommand", "Keep kernels from being put to sleep."),
        "unpin": ("torpor.cli.sleep.UnpinCommand", "Let kernels be put to sleep again."),
        "checkpoint": (
            "torpor.cli.branch.CheckpointCommand",
            "Save a kernel's memory under a name.",
        ),
        "rollback": ("torpor.cli.branch.RollbackCommand", "Take a kernel back to a checkpoint."),
        "fork": ("torpor.cli.branch.ForkCommand", "Make a second kernel with the same memory."),
        "shutdown": ("torpor.cli.shutdown.ShutdownCommand", "End kernels, asleep or awake."),
        "snapshots": (
            "torpor.cli.snapshots.SnapshotsCommand",
            "List the saved memory of hibernated kernels, and move it to and from the store.",
        ),
        "restore": (
            "torpor.cli.restore.RestoreCommand",
            "Make a new kernel from a snapshot, also of a kernel of another machine.",
        ),
        "golden": (
            "torpor.cli.golden.GoldenCommand",
            "List, build and remove goldens: saved kernels that others are started from.",
        ),
        "pool": ("torpor.cli.pool.PoolCommand", "Show the clones that wait to be claimed."),
        "templates": (
            "torpor.cli.templates.TemplatesCommand",
            "List the templates a kernel can be started from.",
        ),
        "logs": ("torpor.cli.logs.LogsCommand", "Show what the daemon and the bridge logged."),
        "daemon": (
            "torpor.cli.daemon.DaemonCommand",
            "Start or stop the daemon, or show its state.",
        ),
    }
